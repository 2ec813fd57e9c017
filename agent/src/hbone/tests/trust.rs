//! Tunnels whose certificates are not trusted any more.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::world::{World, echo, soon, until};
use crate::{
    hbone::ConnectError,
    net::tls::{Revocations, Trust, sample::Ca},
};

#[tokio::test]
async fn a_tunnel_that_is_not_trusted_any_more_is_cut_and_takes_no_streams() {
    let world = World::new().await;
    let echo = echo().await;
    let (mut app, copy) = world.app(echo).await;
    app.write_all(b"x").await.unwrap();
    assert_eq!(soon(app.read_u8()).await.unwrap(), b'x');

    // One root more changes nothing.
    world
        .sessions
        .set_trust(world.ca.bundle().merged(&Ca::new().bundle()).into());
    app.write_all(b"y").await.unwrap();
    assert_eq!(soon(app.read_u8()).await.unwrap(), b'y');
    assert_eq!(world.tunnels(), 1);

    world.sessions.set_trust(Ca::new().bundle().into());
    assert!(
        world.connect(echo).await.is_err(),
        "a stream on a tunnel that is not trusted"
    );
    soon(copy.task).await.unwrap().unwrap_err();
    let reset = soon(app.read_u8()).await.unwrap_err();
    assert_eq!(reset.kind(), std::io::ErrorKind::ConnectionReset);
    until(|| world.pool.counts() == (0, 0)).await;
}

#[tokio::test]
async fn a_stream_that_was_about_to_be_opened_takes_another_tunnel() {
    let world = World::new().await;
    let echo = echo().await;
    let stream = world.connect(echo).await.unwrap();
    // The tunnel's own client certificate is revoked; the next tunnel has another.
    let old = world.presented.lock().unwrap().clone().unwrap();
    let crl = Revocations::from_pem(&world.ca.crl(&[&old])).unwrap();
    world.sessions.set_trust(Trust::new(world.ca.bundle(), crl));
    assert!(stream.session().unwrap().is_rejected());
    let next = world.connect(echo).await.unwrap();
    assert!(!next.session().unwrap().is_rejected());
    assert_eq!(world.tunnels(), 2);
}

#[tokio::test]
async fn a_server_that_was_revoked_is_told_from_one_that_is_somebody_else() {
    let world = World::new().await;
    let crl = Revocations::from_pem(&world.ca.crl(&[&world.server_cert])).unwrap();
    world.sessions.set_trust(Trust::new(world.ca.bundle(), crl));
    let err = world.connect(([127, 0, 0, 1], 9).into()).await.unwrap_err();
    assert!(matches!(err, ConnectError::Tls { .. }), "{err:?}");
    assert_eq!(err.kind().response_flags(), "CERT_REVOKED");
}
