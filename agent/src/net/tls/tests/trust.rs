//! Whom is believed, and until when: clocks that differ, roots that come and go, revocations.

use std::time::SystemTime;

use rcgen::CertificateParams;
use rustls::pki_types::UnixTime;

use super::*;
use crate::net::tls::Rejected;

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);

fn uri() -> [SanType; 1] {
    [SanType::URI(CLIENT.try_into().unwrap())]
}

/// What a server says to a client with this certificate.
async fn met(ca: &Ca, change: impl FnOnce(&mut CertificateParams)) -> Result<SpiffeId, TlsError> {
    let cert = ca.leaf(&uri(), change);
    handshake(client(ca, cert), server(ca)).await.1
}

#[tokio::test]
async fn clocks_may_differ_by_a_minute() {
    let ca = Ca::new();
    let now = SystemTime::now();
    let ahead = met(&ca, |params| params.not_before = (now + MINUTE / 2).into()).await;
    assert!(ahead.is_ok(), "{ahead:?}");
    let behind = met(&ca, |params| params.not_after = (now - MINUTE / 2).into()).await;
    assert!(behind.is_ok(), "{behind:?}");
    // The server's certificate as well.
    let cert = ca.leaf(&[SanType::URI(SERVER.try_into().unwrap())], |params| {
        params.not_before = (now + MINUTE / 2).into();
    });
    let server = server_of(&ca.sessions(), cert);
    assert!(handshake(client(&ca, ca.svid(CLIENT)), server).await.0.is_ok());
}

#[tokio::test]
async fn beyond_a_minute_both_times_are_named() {
    let ca = Ca::new();
    let now = SystemTime::now();
    for (from, to, expect) in [
        (now + 5 * MINUTE, now + DAY, "not valid yet: it is valid from"),
        (now - DAY, now - 5 * MINUTE, "has expired: it was valid until"),
    ] {
        let refused = met(&ca, |params| {
            (params.not_before, params.not_after) = (from.into(), to.into());
        });
        let line = text(&refused.await.unwrap_err());
        let theirs = humantime::format_rfc3339_seconds(if from > now { from } else { to }).to_string();
        assert!(line.contains(expect) && line.contains(&theirs), "{line}");
        // Our own, to the minute: the test takes its time.
        let ours = humantime::format_rfc3339_seconds(now).to_string();
        assert!(line.contains(&ours[..14]), "{line}");
    }
}

#[test]
fn the_minute_is_for_the_time_alone() {
    let (ca, foreign) = (Ca::new(), Ca::new());
    let late = |params: &mut CertificateParams| params.not_before = (SystemTime::now() + MINUTE / 2).into();
    let cert = foreign.leaf(&uri(), late);
    let trust = Trust::from(ca.bundle());
    let asked =
        |trust: &Trust, cert: &CertifiedKey, purpose| trust.accepts(&cert.cert, purpose, UnixTime::now());
    assert!(matches!(
        asked(&trust, &cert, Purpose::Client),
        Err(Rejected::Untrusted(_))
    ));
    let cert = ca.leaf(&uri(), |params| {
        late(params);
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    });
    assert!(matches!(
        asked(&trust, &cert, Purpose::Client),
        Err(Rejected::Untrusted(_))
    ));
    assert_eq!(asked(&trust, &cert, Purpose::Server), Ok(()));
    // Revoked is revoked, by whatever clock.
    let crl = Revocations::from_pem(&ca.crl(&[&cert])).unwrap();
    let refused = asked(&Trust::new(ca.bundle(), crl), &cert, Purpose::Server);
    assert!(matches!(refused, Err(Rejected::Revoked { .. })), "{refused:?}");
    // No life is so short that both ends of it are stretched to a minute at once.
    let now = UnixTime::now();
    let over = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()) + 2 * DAY);
    assert!(matches!(
        trust.accepts(
            &ca.leaf(&uri(), |params| params.not_after =
                (SystemTime::now() + DAY).into())
                .cert,
            Purpose::Client,
            over
        ),
        Err(Rejected::Expired { .. })
    ));
    assert_eq!(trust.accepts(&[], Purpose::Client, now), Err(Rejected::Empty));
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_and_others_are_not() {
    let ca = Ca::new();
    let (gone, good) = (ca.svid(CLIENT), ca.svid(CLIENT));
    // A list that should have been replaced long ago.
    let crl = Revocations::from_pem(&ca.crl(&[&gone])).unwrap();
    assert!(crl.next_update().unwrap() < SystemTime::now());
    let sessions = Sessions::new(Trust::new(ca.bundle(), crl));
    let server = server_of(&sessions, ca.svid(SERVER));
    let (dialled, served) = handshake(client_of(&sessions, gone.clone()), server.clone()).await;
    let refused = served.unwrap_err();
    assert!(
        refused.is_revoked() && text(&refused).contains("has been revoked (serial number "),
        "{refused:?}"
    );
    assert!(
        text(&dialled.unwrap_err()).contains("CertificateRevoked"),
        "the alert"
    );
    assert!(handshake(client_of(&sessions, good), server).await.1.is_ok());

    // A server's.
    let gone = ca.svid(SERVER);
    let crl = Revocations::from_pem(&ca.crl(&[&gone])).unwrap();
    let sessions = Sessions::new(Trust::new(ca.bundle(), crl));
    let (dialled, _) = handshake(client_of(&sessions, ca.svid(CLIENT)), server_of(&sessions, gone)).await;
    assert!(dialled.unwrap_err().is_revoked());
}

#[test]
fn lists_of_roots_that_have_one_name_are_told_apart() {
    // All of these have the same subject.
    let (old, new, third) = (Ca::new(), Ca::new(), Ca::new());
    let (of_old, of_new, of_third) = (old.svid(CLIENT), new.svid(CLIENT), third.svid(CLIENT));
    let (good_old, good_new) = (old.svid(CLIENT), new.svid(CLIENT));
    let pem = [old.crl(&[&of_old]), new.crl(&[&of_new])].concat();
    let lists = Revocations::from_pem(&pem).unwrap();
    assert_eq!(lists.len(), 2);
    let trust = Trust::new(old.bundle().merged(&new.bundle()).merged(&third.bundle()), lists);
    let revoked = |cert: &CertifiedKey| match trust.accepts(&cert.cert, Purpose::Client, UnixTime::now()) {
        Ok(()) => false,
        Err(Rejected::Revoked { .. }) => true,
        Err(other) => panic!("{other}"),
    };
    assert!(revoked(&of_old) && revoked(&of_new));
    assert!(!revoked(&good_old) && !revoked(&good_new) && !revoked(&of_third));
}

#[test]
fn an_intermediate_that_was_revoked_takes_its_certificates_with_it() {
    let root = Ca::new();
    let middle = root.intermediate();
    let cert = middle.svid(CLIENT);
    let issuer = CertifiedKey::clone(&cert);
    let issuer = CertifiedKey::new(vec![issuer.cert[1].clone()], issuer.key);
    let lists = Revocations::from_pem(&root.crl(&[&issuer])).unwrap();
    let refused = Trust::new(root.bundle(), lists).accepts(&cert.cert, Purpose::Client, UnixTime::now());
    assert!(matches!(refused, Err(Rejected::Revoked { .. })), "{refused:?}");
}

#[test]
fn lists_that_cannot_be_used_say_why() {
    let ca = Ca::new();
    let good = String::from_utf8(ca.crl(&[])).unwrap();
    let damaged = good.replacen("MI", "AA", 1);
    let many = good.repeat(65);
    for (pem, expect) in [
        ("", "it holds no `X509 CRL` block"),
        ("hello", "it holds no `X509 CRL` block"),
        (&damaged, "CRL 1: "),
        (&many, "it holds 65 lists; 64 are taken"),
    ] {
        let err = Revocations::from_pem(pem.as_bytes()).unwrap_err().to_string();
        assert!(
            err.starts_with("the CRL cannot be used: ") && err.contains(expect),
            "{err}"
        );
    }
    assert!(Revocations::from_pem(good.as_bytes()).is_ok());
}

/// A session of each of two CAs, both of whose roots are trusted.
struct Two {
    old: Ca,
    new: Ca,
    shared: Sessions,
    of_old: Arc<Session>,
    of_new: Arc<Session>,
}

impl Two {
    /// Both clients speak to a server of the new one.
    async fn open() -> Self {
        let (old, new) = (Ca::new(), Ca::new());
        let both = old.bundle().merged(&new.bundle());
        let (shared, others) = (Sessions::new(both.clone().into()), Sessions::new(both.into()));
        let server = server_of(&shared, new.svid(SERVER));
        let (_, of_old) = sessions(client_of(&others, old.svid(CLIENT)), server.clone()).await;
        let (_, of_new) = sessions(client_of(&others, new.svid(CLIENT)), server).await;
        Self {
            old,
            new,
            shared,
            of_old: of_old.unwrap(),
            of_new: of_new.unwrap(),
        }
    }
}

#[tokio::test]
async fn a_removed_root_ends_its_sessions_and_no_others() {
    let two = Two::open().await;
    assert_eq!(two.shared.len(), 2);
    two.shared.set_trust(two.new.bundle().into());
    let ended = two.of_old.rejected().await;
    assert!(!ended.is_revoked());
    assert!(
        ended
            .to_string()
            .starts_with(&format!("the certificate of {CLIENT} is not accepted any more: ")),
        "{ended}"
    );
    assert!(two.of_old.is_rejected() && !two.of_new.is_rejected());
    // What ended is not taken up again.
    two.shared
        .set_trust(two.old.bundle().merged(&two.new.bundle()).into());
    assert!(two.of_old.is_rejected() && !two.of_new.is_rejected());
    // Without the root of our own certificate nobody would speak to us any more.
    two.shared.set_trust(two.old.bundle().into());
    let ended = two.of_new.rejected().await;
    drop(two.of_new);
    drop(two.of_old);
    assert!(two.shared.is_empty(), "{ended}");
}

#[tokio::test]
async fn our_own_certificate_is_asked_about_too() {
    let (old, new) = (Ca::new(), Ca::new());
    let both = old.bundle().merged(&new.bundle());
    let (shared, others) = (Sessions::new(both.clone().into()), Sessions::new(both.into()));
    let server = server_of(&shared, old.svid(SERVER));
    let (_, session) = sessions(client_of(&others, new.svid(CLIENT)), server).await;
    let session = session.unwrap();
    shared.set_trust(new.bundle().into());
    let ended = session.rejected().await;
    assert!(matches!(ended, Ended::Ours { .. }), "{ended:?}");
}

#[tokio::test]
async fn a_revocation_ends_its_session_and_no_other() {
    let ca = Ca::new();
    let (shared, others) = (ca.sessions(), ca.sessions());
    let server = server_of(&shared, ca.svid(SERVER));
    let (gone, good) = (ca.svid(CLIENT), ca.svid(CLIENT));
    let (_, ends) = sessions(client_of(&others, gone.clone()), server.clone()).await;
    let (_, stays) = sessions(client_of(&others, good), server).await;
    let (ends, stays) = (ends.unwrap(), stays.unwrap());
    let crl = Revocations::from_pem(&ca.crl(&[&gone])).unwrap();
    shared.set_trust(Trust::new(ca.bundle(), crl));
    assert!(ends.rejected().await.is_revoked());
    assert!(!stays.is_rejected());
}

#[tokio::test]
async fn a_change_during_the_handshake_counts() {
    let (ca, other) = (Ca::new(), Ca::new());
    let (shared, others) = (ca.sessions(), ca.sessions());
    // Made before the change, used after it.
    let server = server_of(&shared, ca.svid(SERVER));
    shared.set_trust(other.bundle().into());
    let (_, session) = sessions(client_of(&others, ca.svid(CLIENT)), server).await;
    assert!(session.unwrap().is_rejected());
}

#[tokio::test]
async fn a_certificate_that_runs_out_does_not_end_its_session() {
    let ca = Ca::new();
    let (shared, others) = (ca.sessions(), ca.sessions());
    let server = server_of(&shared, ca.svid(SERVER));
    // Over already, by less than clocks may differ; asked again by a time far from its life.
    let cert = ca.leaf(&uri(), |params| {
        params.not_after = (SystemTime::now() - MINUTE / 2).into();
    });
    let (_, session) = sessions(client_of(&others, cert), server).await;
    let session = session.unwrap();
    shared.set_trust(ca.bundle().merged(&Ca::new().bundle()).into());
    assert!(!session.is_rejected());
}

#[tokio::test]
async fn a_session_does_not_keep_the_key() {
    let ca = Ca::new();
    let (shared, cert) = (ca.sessions(), ca.svid(SERVER));
    let key = Arc::downgrade(&cert);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let tcp = TcpStream::connect(addr).await.unwrap();
    let dialled = connect(tcp, client(&ca, ca.svid(CLIENT)), addr.ip(), SOON);
    let served = accept(listener.accept().await.unwrap().0, server_of(&shared, cert), SOON);
    let (_dialled, _served) = tokio::join!(dialled, served);
    assert!(key.upgrade().is_none(), "an open session holds its private key");
}
