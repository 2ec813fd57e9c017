//! dig, and what it prints.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use weft_tests::Host;

/// One answer, as dig shows it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dug {
    /// For example `NOERROR`.
    pub(crate) status: String,
    /// For example `qr aa rd ra`.
    pub(crate) flags: String,
    /// Each `owner ttl class type data`, with single spaces.
    pub(crate) answer: Vec<String>,
    pub(crate) authority: Vec<String>,
    /// `address#port`.
    pub(crate) server: String,
    /// All that it printed.
    pub(crate) text: String,
}

impl Dug {
    /// The data of the answer's records of one type, sorted.
    pub(crate) fn records(&self, record_type: &str) -> Vec<String> {
        let of_type = |line: &String| {
            let mut fields = line.splitn(5, ' ').skip(3);
            (fields.next()? == record_type).then(|| fields.next().unwrap_or_default().to_owned())
        };
        let mut records: Vec<_> = self.answer.iter().filter_map(of_type).collect();
        records.sort();
        records
    }

    /// Whether a flag is set.
    pub(crate) fn has(&self, flag: &str) -> bool {
        self.flags.split(' ').any(|it| it == flag)
    }
}

/// Asks `server` from `from`; `args` are a name, a type, and dig's own options. Fails where there was no answer.
pub(crate) fn dig(from: &Host, server: IpAddr, args: &str) -> Result<Dug> {
    let dug = try_dig(from, server, args)?;
    ensure!(
        !dug.status.is_empty(),
        "dig @{server} {args}: no answer:\n{}",
        dug.text
    );
    ensure!(
        dug.server == format!("{server}#53"),
        "dig @{server} {args}: the answer came from {}",
        dug.server
    );
    Ok(dug)
}

/// The same, with an empty status where there was none.
pub(crate) fn try_dig(from: &Host, server: IpAddr, args: &str) -> Result<Dug> {
    let mut command = from.command("dig");
    // Not what a person has in their .digrc, nor cookies, which differ each time.
    command.args(["-r", &format!("@{server}"), "+nocookie", "+tries=1", "+time=8"]);
    let output = command
        .args(args.split_whitespace())
        .output()
        .context("run dig: is bind9-dnsutils installed?")?;
    Ok(parse(&String::from_utf8_lossy(&output.stdout)))
}

fn parse(text: &str) -> Dug {
    let mut dug = Dug {
        text: text.to_owned(),
        ..Dug::default()
    };
    let mut section = "";
    for line in text.lines() {
        if let Some((_, status)) = line.split_once("status: ") {
            dug.status = status.split(',').next().unwrap_or_default().to_owned();
        } else if let Some(flags) = line.strip_prefix(";; flags: ") {
            dug.flags = flags.split(';').next().unwrap_or_default().to_owned();
        } else if let Some(server) = line.strip_prefix(";; SERVER: ") {
            dug.server = server.split('(').next().unwrap_or_default().to_owned();
        } else if let Some(header) = line
            .strip_prefix(";; ")
            .and_then(|line| line.strip_suffix(" SECTION:"))
        {
            section = header;
        } else if !line.is_empty() && !line.starts_with(';') {
            let record = line.split_whitespace().collect::<Vec<_>>().join(" ");
            match section {
                "ANSWER" => dug.answer.push(record),
                "AUTHORITY" => dug.authority.push(record),
                _ => {}
            }
        }
    }
    dug
}
