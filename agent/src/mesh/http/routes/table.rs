//! One table of routes: the first entry whose whole test holds.

use super::{
    super::{
        HostMatch, PathMatch, RouteTable,
        path::canonical_escapes,
        request::Asked,
        test::Test,
        text::{BadExpression, whole},
    },
    Prepared, RoutesError,
};

/// A [`RouteTable`], indexed.
#[derive(Debug)]
pub(super) struct Table {
    entries: Vec<(Vec<HostMatch>, Path, Test)>,
    rules: Vec<Prepared>,
}

#[derive(Debug)]
enum Path {
    Any,
    Regex(regex::bytes::Regex),
    Text(PathMatch),
}

impl Table {
    pub(super) fn new(table: &RouteTable) -> Result<Self, RoutesError> {
        let rules = table.rules.iter();
        let rules = rules.map(|rule| Prepared::new(rule).map_err(|bad| RoutesError::of(rule, bad)));
        let mut entries = Vec::new();
        for entry in &table.entries {
            let rule = table
                .rules
                .get(entry.rule)
                .ok_or(RoutesError::NoSuchRule(entry.rule))?;
            let bad = |bad: BadExpression| RoutesError::of(rule, bad);
            let path = match &entry.test.path {
                None => Path::Any,
                Some(PathMatch::Regex(regex)) => Path::Regex(whole(regex).map_err(bad)?),
                Some(text) => Path::Text(text.clone()),
            };
            let test = Test::new(&entry.test).map_err(bad)?;
            entries.push((entry.test.hosts.clone(), path, test));
        }
        Ok(Self {
            entries,
            rules: rules.collect::<Result<_, _>>()?,
        })
    }

    pub(super) fn find(&self, asked: &Asked<'_>) -> Option<usize> {
        self.entries.iter().position(|(hosts, path, test)| {
            (hosts.is_empty() || hosts.iter().any(|host| host.matches(&asked.host)))
                && path.holds(asked)
                && test.holds(asked)
        })
    }

    pub(super) fn prepared(&self, rule: usize) -> Option<&Prepared> {
        self.rules.get(rule)
    }
}

impl Path {
    fn holds(&self, asked: &Asked<'_>) -> bool {
        let path = asked.head.path;
        match self {
            Self::Any => true,
            Self::Regex(regex) => regex.is_match(path.as_bytes()),
            Self::Text(PathMatch::Exact(text)) => *path == *canonical_escapes(text),
            Self::Text(PathMatch::Under(text)) => {
                let text = canonical_escapes(text);
                let rest = path.strip_prefix(text.trim_end_matches('/'));
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Self::Text(PathMatch::Prefix(text)) => path.starts_with(&*canonical_escapes(text)),
            Self::Text(PathMatch::ExactIgnoringCase(text)) => {
                asked.lower_path() == canonical_escapes(text).to_ascii_lowercase()
            }
            Self::Text(PathMatch::PrefixIgnoringCase(text)) => asked
                .lower_path()
                .starts_with(&canonical_escapes(text).to_ascii_lowercase()),
            Self::Text(PathMatch::Regex(_)) => false,
        }
    }
}
