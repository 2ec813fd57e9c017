//! What is printed is read again, and nothing that a peer writes does more than not be understood.

use proptest::prelude::*;

use super::*;

#[test]
fn an_authority_is_an_address_or_a_name_with_a_port() {
    for (text, expect) in [
        ("10.0.0.7:8080", Ok(Authority::Addr(([10, 0, 0, 7], 8080).into()))),
        (
            "[fd00::7]:80",
            Ok(Authority::Addr("[fd00::7]:80".parse().unwrap())),
        ),
        (
            "stock.shop.svc.cluster.local:80",
            Ok(Authority::Host("stock.shop.svc.cluster.local".into(), 80)),
        ),
        ("Stock.Shop:80", Ok(Authority::Host("stock.shop".into(), 80))),
        ("10.0.0.7", Err(HeaderError::Authority)),
        ("10.0.0.7:", Err(HeaderError::Authority)),
        ("10.0.0.7:70000", Err(HeaderError::Authority)),
        ("10.0.0.999:80", Err(HeaderError::Authority)),
        ("fd00::7:80", Err(HeaderError::Authority)),
        ("[fd00::7]", Err(HeaderError::Authority)),
        ("a..b:80", Err(HeaderError::Authority)),
        ("user@host:80", Err(HeaderError::Authority)),
        ("host:+80", Err(HeaderError::Authority)),
        (":80", Err(HeaderError::Authority)),
        ("", Err(HeaderError::Authority)),
    ] {
        assert_eq!(text.parse::<Authority>(), expect, "{text}");
    }
}

#[test]
fn baggage_has_every_field_of_the_wire_contract() {
    let baggage = Baggage {
        cluster: "Kubernetes".into(),
        namespace: "shop".into(),
        workload_type: WorkloadType::Deployment,
        workload_name: "cart".into(),
        service_name: "cart".into(),
        service_version: "v1".into(),
        region: "eu-west-1".into(),
        zone: String::new(),
    };
    let text = "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=cart,\
                service.name=cart,service.version=v1,cloud.region=eu-west-1,cloud.availability_zone=";
    assert_eq!(baggage.to_string(), text);
    assert_eq!(baggage.header(), text);
    assert_eq!(text.parse::<Baggage>().unwrap(), baggage);
}

#[test]
fn baggage_of_others_is_read_as_far_as_it_goes() {
    let read = |text: &str| text.parse::<Baggage>();
    assert_eq!(read("").unwrap(), Baggage::default());
    assert_eq!(read("a=b, ,=,x").unwrap(), Baggage::default());
    assert_eq!(
        read(" k8s.namespace.name = shop ;p=1 ").unwrap().namespace,
        "shop"
    );
    assert_eq!(
        read("service.name=a%2Cb%20c%zz").unwrap().service_name,
        "a,b c%zz"
    );
    assert_eq!(read("service.name=%ff"), Err(HeaderError::NotText));
    assert_eq!(read(&"a=b,".repeat(3000)), Err(HeaderError::TooLong));
    let job = read("k8s.job.name=nightly").unwrap();
    assert_eq!(
        (job.workload_type, job.workload_name.as_str()),
        (WorkloadType::Job, "nightly")
    );
}

#[test]
fn forwarded_quotes_the_address_and_may_name_the_service() {
    for (text, client, host) in [
        (r#"for="10.0.0.7:4711""#, "10.0.0.7:4711", None),
        (
            r#"for="10.0.0.7:4711";host=stock.shop"#,
            "10.0.0.7:4711",
            Some("stock.shop"),
        ),
        (r#"for="[fd00::7]:4711""#, "[fd00::7]:4711", None),
    ] {
        let forwarded = Forwarded {
            client: client.parse().unwrap(),
            host: host.map(String::from),
        };
        assert_eq!(forwarded.to_string(), text);
        assert_eq!(text.parse(), Ok(forwarded));
    }
    let other = r#"proto=http; For="10.0.0.7:1" ; HOST="Stock.Shop", for="10.0.0.8:2""#;
    let read: Forwarded = other.parse().unwrap();
    assert_eq!(
        (read.client, read.host.as_deref()),
        (([10, 0, 0, 7], 1).into(), Some("stock.shop"))
    );
    for text in ["", "for=unknown", "for=10.0.0.7", "host=stock.shop", "for"] {
        assert_eq!(text.parse::<Forwarded>(), Err(HeaderError::Forwarded), "{text}");
    }
}

#[test]
fn traceparent_follows_the_w3c() {
    let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let read: TraceParent = text.parse().unwrap();
    assert_eq!((read.flags, read.to_string().as_str()), (1, text));
    let later = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more";
    assert_eq!(later.parse::<TraceParent>(), Ok(read));
    for text in [
        "",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
    ] {
        assert_eq!(
            text.parse::<TraceParent>(),
            Err(HeaderError::TraceParent),
            "{text}"
        );
    }
    assert_eq!(
        TraceParent::new([0; 24], false).to_string().parse(),
        Ok(TraceParent::new([0; 24], false))
    );
}

fn kind() -> impl Strategy<Value = WorkloadType> {
    use WorkloadType::{CronJob, Deployment, Job, Pod};
    prop_oneof![Just(Deployment), Just(Pod), Just(Job), Just(CronJob)]
}

prop_compose! {
    fn baggage()(workload_type in kind(), [cluster, namespace, workload_name, service_name, service_version, region, zone]
        in prop::array::uniform7(".{0,40}")) -> Baggage {
        Baggage { cluster, namespace, workload_type, workload_name, service_name, service_version, region, zone }
    }
}

proptest! {
    #[test]
    fn baggage_round_trips(baggage in baggage()) {
        let header = baggage.header();
        prop_assert_eq!(header.to_str().unwrap().parse::<Baggage>(), Ok(baggage));
    }

    #[test]
    fn authorities_round_trip(addr: SocketAddr, host in "[a-z][a-z0-9-]{0,20}(\\.[a-z][a-z0-9_-]{0,20}){0,4}", port: u16) {
        // A scope is not part of an address on another machine.
        let addr = SocketAddr::new(addr.ip(), addr.port());
        for authority in [Authority::Addr(addr), Authority::Host(host.clone(), port)] {
            prop_assert_eq!(authority.to_string().parse::<Authority>(), Ok(authority));
        }
    }

    #[test]
    fn forwarded_round_trips(addr: SocketAddr, host in proptest::option::of("[a-z][a-z0-9-]{0,20}(\\.[a-z]{1,9}){0,3}")) {
        let forwarded = Forwarded { client: SocketAddr::new(addr.ip(), addr.port()), host };
        prop_assert_eq!(forwarded.to_string().parse::<Forwarded>(), Ok(forwarded));
    }

    #[test]
    fn traceparents_round_trip(random: [u8; 24], sampled: bool) {
        let trace = TraceParent::new(random, sampled);
        prop_assert_eq!(trace.to_string().parse::<TraceParent>(), Ok(trace));
    }

    #[test]
    fn nothing_that_is_read_panics(text in "\\PC{0,200}") {
        let _ = text.parse::<Authority>();
        let _ = text.parse::<Baggage>();
        let _ = text.parse::<Forwarded>();
        let _ = text.parse::<TraceParent>();
    }

    #[test]
    fn nothing_that_looks_right_panics(text in "[-%0-9a-f:;,=\\[\\]\"forhst.]{0,120}") {
        let _ = text.parse::<Authority>();
        let _ = format!("service.name={text}").parse::<Baggage>();
        let _ = text.parse::<Forwarded>();
        let _ = text.parse::<TraceParent>();
    }
}
