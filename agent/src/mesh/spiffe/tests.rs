//! Which texts are identities; and that no text makes the parser panic.

use proptest::prelude::*;

use super::*;

fn check(uri: &str, expect: Result<[&str; 3], ()>) {
    let id = uri.parse::<SpiffeId>();
    let parts = id
        .as_ref()
        .map(|id| [id.trust_domain(), id.namespace(), id.service_account()])
        .map_err(|_| ());
    assert_eq!(parts, expect, "{uri}");
    if let Ok(id) = &id {
        assert_eq!(id.to_string(), uri);
        assert_eq!(format!("spiffe://{}", id.principal()), uri);
    }
}

#[test]
fn identities() {
    check(
        "spiffe://cluster.local/ns/demo/sa/web",
        Ok(["cluster.local", "demo", "web"]),
    );
    check("spiffe://td_1/ns/a.b/sa/C-d_e", Ok(["td_1", "a.b", "C-d_e"]));
    for uri in [
        "",
        "spiffe://",
        "spiffe:///ns/demo/sa/web",
        "spiffe://cluster.local",
        "spiffe://cluster.local/",
        "spiffe://cluster.local/ns/demo",
        "spiffe://cluster.local/ns/demo/sa/",
        "spiffe://cluster.local/ns//sa/web",
        "spiffe://cluster.local/ns/demo/sa/web/",
        "spiffe://cluster.local/ns/demo/sa/web/more",
        "spiffe://cluster.local/sa/web/ns/demo",
        "spiffe://cluster.local/ns/../sa/web",
        "spiffe://cluster.local/ns/demo/sa/w%65b",
        "spiffe://cluster.local/ns/demo/sa/web?x",
        "spiffe://cluster.local/ns/demo/sa/web#x",
        "spiffe://cluster.local:443/ns/demo/sa/web",
        "spiffe://user@cluster.local/ns/demo/sa/web",
        "spiffe://Cluster.local/ns/demo/sa/web",
        "SPIFFE://cluster.local/ns/demo/sa/web",
        "https://cluster.local/ns/demo/sa/web",
        "spiffe://cluster.local/ns/d\u{e9}mo/sa/web",
    ] {
        check(uri, Err(()));
    }
    check(
        &format!("spiffe://cluster.local/ns/demo/sa/{}", "x".repeat(2048)),
        Err(()),
    );
}

proptest! {
    #[test]
    fn no_text_panics(text in any::<String>()) {
        let _ = text.parse::<SpiffeId>();
        let _ = format!("spiffe://{text}").parse::<SpiffeId>();
        let _ = format!("spiffe://cluster.local/ns/{text}/sa/{text}").parse::<SpiffeId>();
    }

    #[test]
    fn parts_come_back(td in "[a-z0-9._-]{1,255}", ns in "[a-z][a-z0-9-]{0,62}", sa in "[a-z][a-z0-9.-]{0,252}") {
        let id = SpiffeId::new(&td.parse().unwrap(), &ns, &sa).unwrap();
        prop_assert_eq!([id.trust_domain(), id.namespace(), id.service_account()], [&*td, &*ns, &*sa]);
        prop_assert_eq!(id.as_str().parse::<SpiffeId>().unwrap(), id);
    }
}
