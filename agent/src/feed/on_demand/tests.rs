//! Once per address, bounded, and with an end.

use tokio::task::JoinSet;

use super::*;

fn address(nth: u16) -> IpAddr {
    let [high, low] = nth.to_be_bytes();
    [10, 0, high, low].into()
}

fn pod(name: &str) -> Arc<str> {
    name.into()
}

#[tokio::test]
async fn many_that_dial_one_address_are_one_question() {
    let (on_demand, mut lookups) = on_demand();
    let mut waiting = JoinSet::new();
    for nth in 0..100 {
        let on_demand = on_demand.clone();
        waiting.spawn(async move { on_demand.look_up(&pod(&format!("pod-{nth}")), address(1)).await });
    }
    let asked = lookups.next().await.unwrap();
    // Those that have not had their turn yet find the question there as well, since it has no answer.
    while asked[0].answered.receiver_count() <= 100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        asked.iter().map(Lookup::address).collect::<Vec<_>>(),
        [address(1)]
    );
    assert!(!asked[0].is_given_up());
    drop(asked);
    while let Some(answer) = waiting.join_next().await {
        assert_eq!(answer.unwrap(), Answer::Answered);
    }
    assert!(lookups.queue.try_recv().is_err());
    // The next to dial it asks again.
    let again = on_demand.ask(&pod("pod"), address(1)).unwrap();
    assert_eq!(lookups.next().await.unwrap().len(), 1);
    assert!(again.has_changed().is_err());
}

#[tokio::test]
async fn bounds() {
    let (on_demand, mut lookups) = on_demand();
    let scan = |name: &str, addresses: std::ops::Range<u16>| {
        addresses
            .filter(|nth| on_demand.ask(&pod(name), address(*nth)).is_some())
            .count()
    };
    assert_eq!(scan("scanner", 0..1000), MOST_OF_POD);
    assert_eq!(scan("other", 1000..1010), 10);
    // What is under way already is waited for, whoever asked.
    assert_eq!(scan("scanner", 1000..1010), 10);
    let others = (0..20).map(|nth| scan(&format!("pod-{nth}"), 2000 + nth * 100..2100 + nth * 100));
    assert_eq!(others.sum::<usize>(), MOST - MOST_OF_POD - 10);
    assert_eq!(
        on_demand.look_up(&pod("late"), address(9999)).await,
        Answer::TooMany
    );
    let asked = lookups.next().await.unwrap();
    assert_eq!(asked.len(), MOST);
    drop(asked);
    assert_eq!(scan("late", 9999..10_000), 1);
    assert_eq!(lock(&on_demand.under_way).len(), 1);
}

#[tokio::test]
async fn a_feed_that_does_not_answer() {
    let (on_demand, mut lookups) = on_demand();
    let a = pod("a");
    let waited = on_demand.look_up_within(&a, address(1), Duration::from_millis(1));
    assert_eq!(waited.await, Answer::TimedOut);
    let asked = lookups.next().await.unwrap();
    assert!(asked[0].is_given_up());
    drop(asked);
    assert!(lock(&on_demand.under_way).is_empty());
    drop(lookups);
    assert_eq!(on_demand.look_up(&pod("a"), address(1)).await, Answer::TooMany);
    assert!(lock(&on_demand.under_way).is_empty());
}
