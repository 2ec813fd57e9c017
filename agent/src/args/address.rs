//! `host:port` of another program, as people, charts and Kubernetes' own variables write it.

use std::net::Ipv6Addr;

/// What is asked for where something else is given.
const MEND: &str = "write HOST:PORT with a name or an address, as [2001:db8::1]:15012";

/// `host:port`, with brackets around an IPv6 address. Given without them it gets them, since Kubernetes writes a Service's
/// address bare (`$(WEFT_CONTROLLER_SERVICE_HOST):15012`): what follows the last colon is the port.
///
/// # Errors
/// What is wrong with it, and how it is written.
pub(super) fn host_port(text: &str) -> Result<String, String> {
    if text.contains("$(") {
        return Err(
            "a variable in it was not set when this was started: a container that is started again gets those of Services that \
             are there by then"
                .to_owned(),
        );
    }
    let (host, port) = text.rsplit_once(':').ok_or(MEND)?;
    if !port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Err(format!("{port:?} is no port: {MEND}"));
    }
    let inside = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let address = inside.unwrap_or(host);
    if address.parse::<Ipv6Addr>().is_ok() {
        return Ok(format!("[{address}]:{port}"));
    }
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if inside.is_some() || host.is_empty() || !host.bytes().all(is_name) {
        return Err(format!("{host:?} is no host: {MEND}"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::{
        args::{Cli, Command},
        source::SourceConfig,
    };

    #[test]
    fn an_ipv6_address_gets_its_brackets() {
        for (given, meant) in [
            ("10.96.0.7:15012", "10.96.0.7:15012"),
            ("istiod.istio-system.svc:15012", "istiod.istio-system.svc:15012"),
            ("fd00:10:96::7:15012", "[fd00:10:96::7]:15012"),
            ("::1:15012", "[::1]:15012"),
            ("2001:db8:1:2:3:4:5:6:443", "[2001:db8:1:2:3:4:5:6]:443"),
            ("[fd00::7]:15012", "[fd00::7]:15012"),
        ] {
            assert_eq!(host_port(given).as_deref(), Ok(meant), "{given}");
        }
    }

    #[test]
    fn what_is_no_address_says_how_one_is_written() {
        for given in [
            "",
            "controller",
            ":15012",
            "controller:",
            "controller:0",
            "controller:70000",
            "fd00::7",
            "[fd00::7]",
            "[controller]:15012",
            "1:2:3:15012",
            "https://controller:15012",
        ] {
            let error = host_port(given).expect_err(given);
            assert!(error.contains("HOST:PORT"), "{given}: {error}");
        }
        let error = host_port("$(WEFT_CONTROLLER_SERVICE_HOST):15012").expect_err("a variable");
        assert!(error.contains("started again"), "{error}");
    }

    /// As the kubelet fills in the chart's argument where Services have IPv6 addresses first.
    #[test]
    fn an_agent_dials_a_controller_with_an_ipv6_address() {
        let cli = Cli::try_parse_from(["weft", "agent", "--node=a", "--controller=fd00:10:96::7:15012"]);
        let Command::Agent(agent) = cli.expect("arguments").command else {
            panic!("another command");
        };
        let roots = std::sync::Arc::new(|| -> crate::rpc::ReadRoots { Box::pin(async { Ok(Vec::new()) }) });
        let SourceConfig::Controller(client) = agent.config(1024, roots).source else {
            panic!("no controller");
        };
        let opens = |address: &str| tonic::transport::Endpoint::from_shared(format!("https://{address}"));
        assert_eq!(client.credentials.address, "[fd00:10:96::7]:15012");
        opens(&client.credentials.address).expect("what the connection is opened with");
        opens("fd00:10:96::7:15012").expect_err("as it was given");
    }
}
