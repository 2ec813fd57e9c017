//! After what a request is tried again, and after how long.

use proptest::prelude::*;

use super::*;
use Attempt::{ConnectFailed, Refused, Reset, Status, TimedOut};

fn check(on: RetryOn, again: &[Attempt], not: &[Attempt]) {
    let retry = Retry {
        on,
        ..Retry::standard()
    };
    for (attempts, expect) in [(again, true), (not, false)] {
        for attempt in attempts {
            assert_eq!(
                retry.again_after(attempt),
                expect,
                "{attempt:?} by {:?}",
                retry.on
            );
        }
    }
}

#[test]
fn after_what() {
    let nothing = RetryOn::default;
    let ok = Status(200, None);
    let unavailable = Status(503, None);
    let broken = [ConnectFailed, Refused, Reset, TimedOut];
    check(
        nothing(),
        &[],
        &[ok, unavailable, ConnectFailed, Refused, Reset, TimedOut],
    );
    check(
        Retry::standard().on,
        &[ConnectFailed, Refused],
        &[ok, unavailable, Reset, TimedOut],
    );
    let on = RetryOn {
        connect_failure: true,
        ..nothing()
    };
    check(on, &[ConnectFailed], &[Refused, Reset, TimedOut, unavailable]);
    let on = RetryOn {
        refused_stream: true,
        ..nothing()
    };
    check(on, &[Refused], &[ConnectFailed, Reset, TimedOut, unavailable]);
    let on = RetryOn {
        reset: true,
        ..nothing()
    };
    check(on, &[Reset], &[ConnectFailed, Refused, TimedOut, unavailable]);
    let on = || RetryOn {
        server_error: true,
        ..nothing()
    };
    check(
        on(),
        &broken,
        &[ok, Status(404, None), Status(409, None), Status(499, None)],
    );
    check(on(), &[Status(500, None), unavailable, Status(599, None)], &[]);
    let on = || RetryOn {
        gateway_error: true,
        ..nothing()
    };
    check(
        on(),
        &broken,
        &[Status(500, None), Status(501, None), Status(505, None)],
    );
    check(on(), &[Status(502, None), unavailable, Status(504, None)], &[]);
    let on = RetryOn {
        retriable_4xx: true,
        ..nothing()
    };
    check(
        on,
        &[Status(409, None)],
        &[Status(400, None), Status(429, None), Reset],
    );
    let on = RetryOn {
        statuses: vec![429, 500],
        ..nothing()
    };
    check(
        on,
        &[Status(429, None), Status(500, None)],
        &[Status(503, None), Reset],
    );
    let on = RetryOn {
        grpc: vec![14],
        ..nothing()
    };
    check(
        on,
        &[Status(200, Some(14))],
        &[ok, Status(200, Some(0)), Status(503, None)],
    );
}

#[test]
fn pauses() {
    let retry = Retry {
        backoff_ms: 25,
        max_backoff_ms: 90,
        ..Retry::standard()
    };
    // The longest of each: a draw of as many microseconds.
    for (n, longest_ms) in [(1, 25), (2, 50), (3, 90), (4, 90), (40, 90), (u32::MAX, 90)] {
        let longest = Duration::from_millis(longest_ms);
        assert_eq!(retry.pause(n, longest_ms * 1000), longest, "{n}");
        assert_eq!(retry.pause(n, longest_ms * 1000 + 1), Duration::ZERO, "{n}");
    }
    assert_eq!(retry.pause(0, 25_000), Duration::from_millis(25));
    assert_eq!(Retry::default().pause(1, 77), Duration::ZERO);
    let endless = Retry {
        backoff_ms: u64::MAX,
        max_backoff_ms: u64::MAX,
        ..Retry::standard()
    };
    endless.pause(9, u64::MAX);
}

proptest! {
    #[test]
    fn a_pause_is_within_its_bound(backoff_ms in 0..10_000_u64, max_backoff_ms in 0..10_000_u64, n in 0..70_u32, draw: u64) {
        let retry = Retry { backoff_ms, max_backoff_ms, ..Retry::standard() };
        let longest = u128::from(backoff_ms) << n.saturating_sub(1);
        let longest = longest.min(u128::from(max_backoff_ms));
        prop_assert!(retry.pause(n, draw).as_millis() <= longest);
    }
}
