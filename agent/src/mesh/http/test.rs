//! What a request must be besides host and path, in the form in which it is compared.

use std::sync::Arc;

use super::{
    HeaderMatch, HeaderTest, QueryMatch, RequestTest,
    request::{Asked, HeaderKey},
    text::{BadExpression, Text},
};

/// All of a [`RequestTest`] but host and path, by which it is found.
#[derive(Debug)]
pub(super) struct Test {
    method: Option<Text>,
    authority: Option<Text>,
    scheme: Option<Text>,
    source_namespace: Option<Arc<str>>,
    headers: Vec<Header>,
    query: Vec<(Arc<str>, Value)>,
}

#[derive(Debug)]
struct Header {
    name: HeaderKey,
    value: Value,
    not: bool,
}

#[derive(Debug)]
enum Value {
    Present,
    Is(Text),
}

impl Test {
    pub(super) fn new(test: &RequestTest) -> Result<Self, BadExpression> {
        let text = |text: &Option<_>| text.as_ref().map(Text::new).transpose();
        let headers = test.headers.iter().map(Header::new);
        let parameter = |it: &QueryMatch| Ok((it.name.clone(), Value::new(&it.test)?));
        Ok(Self {
            method: text(&test.method)?,
            authority: text(&test.authority)?,
            scheme: text(&test.scheme)?,
            source_namespace: test.source_namespace.clone(),
            headers: headers.collect::<Result<_, _>>()?,
            query: test.query.iter().map(parameter).collect::<Result<_, _>>()?,
        })
    }

    pub(super) fn holds(&self, asked: &Asked<'_>) -> bool {
        let head = asked.head;
        let is = |test: &Option<Text>, text: &str| test.as_ref().is_none_or(|it| it.matches(text.as_bytes()));
        let namespace = self.source_namespace.as_deref();
        is(&self.method, head.method.as_str())
            && is(&self.scheme, head.scheme)
            && is(&self.authority, head.authority)
            && namespace.is_none_or(|namespace| head.source_namespace == Some(namespace))
            && self.headers.iter().all(|header| header.holds(asked))
            && self
                .query
                .iter()
                .all(|(name, value)| value.is(asked.parameter(name)))
    }
}

impl Header {
    fn new(header: &HeaderMatch) -> Result<Self, BadExpression> {
        Ok(Self {
            name: HeaderKey::new(&header.name),
            value: Value::new(&header.test)?,
            not: header.not,
        })
    }

    fn holds(&self, asked: &Asked<'_>) -> bool {
        self.value.is(asked.head.header(&self.name).as_deref()) != self.not
    }
}

impl Value {
    fn new(test: &HeaderTest) -> Result<Self, BadExpression> {
        Ok(match test {
            HeaderTest::Present => Self::Present,
            HeaderTest::Is(text) => Self::Is(Text::new(text)?),
        })
    }

    fn is(&self, value: Option<&[u8]>) -> bool {
        match (self, value) {
            (_, None) => false,
            (Self::Present, Some(_)) => true,
            (Self::Is(text), Some(value)) => text.matches(value),
        }
    }
}
