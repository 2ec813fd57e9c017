//! What a client hears that does not want everything.

use super::*;
use crate::feed::store::{Encoded, Update};

/// A resource; `with` are the names that bring it.
fn resource(name: &str, content: &str, alias: Option<&str>, with: &[&str]) -> Update {
    Update {
        kind: Kind::Address,
        name: name.into(),
        resource: Some(Encoded {
            bytes: content.to_owned().into(),
            aliases: alias.into_iter().map(str::to_owned).collect(),
            with: with.iter().map(|name| (*name).into()).collect(),
        }),
    }
}

fn gone(name: &str) -> Update {
    Update {
        kind: Kind::Address,
        name: name.into(),
        resource: None,
    }
}

/// Two services with two pods each; the first of each is on node a, the other on b.
fn store() -> Store {
    let store = Store::default();
    let (a, b) = (node_group("a"), node_group("b"));
    store.update([
        resource("shop/web", "1", Some("/10.96.0.1"), &[]),
        resource("shop/db", "1", Some("/10.96.0.2"), &[]),
        resource("web-1", "1", Some("/10.0.0.1"), &["shop/web", &a]),
        resource("web-2", "1", Some("/10.0.0.2"), &["shop/web", &b]),
        resource("db-1", "1", Some("/10.0.0.3"), &["shop/db", &a]),
        resource("db-2", "1", Some("/10.0.0.4"), &["shop/db", &b]),
    ]);
    store
}

struct Client {
    stream: Stream,
    pushes: Pushes,
}

impl Client {
    fn new(store: &Store) -> Self {
        let (sender, pushes) = mpsc::channel(8);
        let stream = Stream {
            server: Server::new(store.clone()),
            client: "test".into(),
            until: CancellationToken::new(),
            sender,
            subscriptions: Default::default(),
            node: None,
            nonce: 0,
        };
        Self { stream, pushes }
    }

    async fn ask(&mut self, subscribe: &[&str], unsubscribe: &[&str]) -> String {
        self.request(subscribe, unsubscribe, None, &[]).await
    }

    /// The first request of an agent in on-demand mode, as ztunnel makes it.
    async fn on_demand(store: &Store, node: &str, has: &[(&str, &str)]) -> (Self, String) {
        let mut client = Self::new(store);
        let said = client.request(&["*"], &["*"], Some(node), has).await;
        (client, said)
    }

    async fn request(
        &mut self,
        subscribe: &[&str],
        unsubscribe: &[&str],
        node: Option<&str>,
        has: &[(&str, &str)],
    ) -> String {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let name = |node: &str| prost_types::Value {
            kind: Some(prost_types::value::Kind::StringValue(node.to_owned())),
        };
        let request = DeltaDiscoveryRequest {
            node: node.map(|node| Node {
                metadata: Some(prost_types::Struct {
                    fields: [("NODE_NAME".to_owned(), name(node))].into(),
                }),
                ..Node::default()
            }),
            type_url: Kind::Address.type_url().to_owned(),
            resource_names_subscribe: owned(subscribe),
            resource_names_unsubscribe: owned(unsubscribe),
            initial_resource_versions: has.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect(),
            ..DeltaDiscoveryRequest::default()
        };
        assert!(self.stream.request(request).await.is_ok());
        self.heard().await
    }

    async fn changes(&mut self) -> String {
        assert!(self.stream.push_changes().await.is_ok());
        self.heard().await
    }

    /// What was sent and not heard of yet, which is answered.
    async fn heard(&mut self) -> String {
        let mut said = Vec::new();
        while let Ok(push) = self.pushes.try_recv() {
            let response = push.unwrap().decoded();
            said.extend(response.resources.into_iter().map(|it| it.name));
            said.extend(
                response
                    .removed_resources
                    .into_iter()
                    .map(|name| format!("-{name}")),
            );
            let answer = DeltaDiscoveryRequest {
                type_url: response.type_url,
                response_nonce: response.nonce,
                ..DeltaDiscoveryRequest::default()
            };
            assert!(self.stream.request(answer).await.is_ok());
        }
        said.sort();
        said.join(" ")
    }
}

#[tokio::test]
async fn an_agent_that_asks_for_nothing_hears_of_its_node() {
    let (mut client, said) = Client::on_demand(&store(), "a", &[]).await;
    assert_eq!(said, "db-1 web-1");
    assert_eq!(client.changes().await, "");
    let (_, said) = Client::on_demand(&store(), "c", &[]).await;
    assert_eq!(said, "");
    // Leaving everything says the same.
    let said = Client::new(&store()).request(&[], &["*"], Some("a"), &[]).await;
    assert_eq!(said, "db-1 web-1");
    // Who does not say that it wants less wants all.
    let mut all = Client::new(&store());
    assert_eq!(all.ask(&[], &[]).await, "db-1 db-2 shop/db shop/web web-1 web-2");
}

#[tokio::test]
async fn a_service_brings_what_is_behind_it() {
    let store = store();
    let (mut client, _) = Client::on_demand(&store, "a", &[]).await;
    assert_eq!(client.ask(&["/10.96.0.1"], &[]).await, "shop/web web-1 web-2");
    // By its own name just so.
    let (mut other, _) = Client::on_demand(&store, "c", &[]).await;
    assert_eq!(other.ask(&["shop/db"], &[]).await, "db-1 db-2 shop/db");
    store.update([
        resource("web-2", "2", Some("/10.0.0.2"), &["shop/web"]),
        resource("web-3", "1", Some("/10.0.0.5"), &["shop/web"]),
        resource("db-2", "2", Some("/10.0.0.4"), &["shop/db"]),
    ]);
    assert_eq!(client.changes().await, "web-2 web-3");
    assert_eq!(other.changes().await, "db-2");
    store.update([gone("web-2"), gone("web-3"), gone("db-2"), gone("db-1")]);
    assert_eq!(client.changes().await, "-db-1 -web-2 -web-3");
    // One that is behind it no more is told of once more: as what it is now.
    store.update([resource("web-1", "2", Some("/10.0.0.1"), &[])]);
    assert_eq!(client.changes().await, "web-1");
}

#[tokio::test]
async fn what_is_not_there_is_said_to_be_gone_and_told_of_when_it_comes() {
    let store = store();
    let (mut client, _) = Client::on_demand(&store, "c", &[]).await;
    assert_eq!(
        client.ask(&["/10.96.0.9", "/10.0.0.2"], &[]).await,
        "-/10.96.0.9 web-2"
    );
    store.update([resource("cart-1", "1", Some("/10.0.0.9"), &["shop/cart"])]);
    assert_eq!(client.changes().await, "");
    store.update([resource("shop/cart", "1", Some("/10.96.0.9"), &[])]);
    assert_eq!(client.changes().await, "cart-1 shop/cart");
    store.update([resource("cart-2", "1", Some("/10.0.0.8"), &["shop/cart"])]);
    assert_eq!(client.changes().await, "cart-2");
}

#[tokio::test]
async fn what_is_asked_for_no_more_is_not_told_of() {
    let store = store();
    let (mut client, _) = Client::on_demand(&store, "a", &[]).await;
    client.ask(&["/10.96.0.1", "/10.0.0.4"], &[]).await;
    client.ask(&[], &["/10.96.0.1"]).await;
    store.update([
        resource("shop/web", "2", Some("/10.96.0.1"), &[]),
        resource("web-1", "2", Some("/10.0.0.1"), &["shop/web", &node_group("a")]),
        resource("web-2", "2", Some("/10.0.0.2"), &["shop/web"]),
        resource("db-2", "2", Some("/10.0.0.4"), &["shop/db"]),
    ]);
    // What runs on its node, and what it still names.
    assert_eq!(client.changes().await, "db-2 web-1");
    store.update([gone("web-2"), gone("db-2")]);
    assert_eq!(client.changes().await, "-db-2");
}

#[tokio::test]
async fn one_that_comes_again_is_told_what_is_new_and_what_has_gone() {
    let store = store();
    let version = {
        let named = store.named(Kind::Address, ["web-1"].into_iter(), None);
        let push = Push::new(Kind::Address, "1".into(), named).unwrap();
        push.decoded().resources[0].version.clone()
    };
    let has = [("web-1", version.as_str()), ("db-2", "0"), ("old-1", "0")];
    let (mut client, said) = Client::on_demand(&store, "a", &has).await;
    assert_eq!(said, "-old-1 db-1 db-2");
    store.update([gone("db-2")]);
    assert_eq!(client.changes().await, "-db-2");
}

#[tokio::test]
async fn names_are_bounded() {
    let mut client = Client::new(&store());
    let names: Vec<_> = (0..=NAMES).map(|number| format!("/{number}")).collect();
    let request = DeltaDiscoveryRequest {
        type_url: Kind::Address.type_url().to_owned(),
        resource_names_subscribe: names,
        ..DeltaDiscoveryRequest::default()
    };
    let refused = client.stream.request(request).await.unwrap_err();
    assert_eq!(refused.unwrap().code(), tonic::Code::ResourceExhausted);
}
