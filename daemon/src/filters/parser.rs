//! Turns a filter into selectors.

use super::quoted::unquote;
use super::scanner::{Scanner, Token};
use super::{Error, Filter, Matcher, Selector};

/// Parses one filter.
pub(super) fn parse(filter: &str) -> Result<Filter, Error> {
    if filter.len() > FILTER_LEN_MAX {
        return Err(error(filter, FILTER_LEN_MAX, "longer than a filter may be"));
    }
    if filter.is_empty() {
        return Ok(Filter { all: Vec::new() });
    }
    let mut parser = Parser { filter, scanner: Scanner::new(filter) };
    let mut all = vec![parser.selector()?];
    loop {
        match parser.scanner.next() {
            (_, Token::End) => return Ok(Filter { all }),
            (_, Token::Separator(',')) => all.push(parser.selector()?),
            (at, _) => return Err(error(filter, at, "expected ',' or the end")),
        }
    }
}

struct Parser<'f> {
    filter: &'f str,
    scanner: Scanner<'f>,
}

impl Parser<'_> {
    fn selector(&mut self) -> Result<Selector, Error> {
        let mut path = vec![self.field()?];
        while self.scanner.peek() == Token::Separator('.') {
            self.scanner.next();
            path.push(self.field()?);
        }
        let matcher = match self.scanner.peek() {
            Token::End | Token::Separator(_) => Matcher::present(),
            _ => self.condition()?,
        };
        Ok(Selector { path, matcher })
    }

    fn field(&mut self) -> Result<String, Error> {
        match self.scanner.next() {
            (_, Token::Field(field)) => Ok(field.to_owned()),
            (at, Token::Quoted(text)) => self.unquote(at, text, false),
            (at, Token::Illegal) => Err(self.error(at, "illegal character or unclosed quote")),
            (at, _) => Err(self.error(at, "expected a field")),
        }
    }

    fn condition(&mut self) -> Result<Matcher, Error> {
        let make: fn(String) -> Matcher = match self.scanner.next() {
            (_, Token::Operator("==")) => Matcher::equal,
            (_, Token::Operator("!=")) => Matcher::not_equal,
            (_, Token::Operator("~=")) => {
                return self.value(true).map(|pattern| Matcher::pattern(&pattern));
            }
            (at, Token::Operator(_)) => return Err(self.error(at, "unknown operator")),
            (at, _) => return Err(self.error(at, "expected an operator")),
        };
        self.value(false).map(make)
    }

    fn value(&mut self, pattern: bool) -> Result<String, Error> {
        match self.scanner.next() {
            (_, Token::Value(value)) => Ok(value.to_owned()),
            (at, Token::Quoted(text)) => self.unquote(at, text, pattern),
            (at, Token::Illegal) => Err(self.error(at, "illegal character or unclosed quote")),
            (at, _) => Err(self.error(at, "expected a value")),
        }
    }

    fn unquote(&self, at: usize, text: &str, pattern: bool) -> Result<String, Error> {
        if !pattern && !text.starts_with('"') {
            return Err(self.error(at, "only patterns may be quoted by '/' or '|'"));
        }
        unquote(text).map_err(|(offset, reason)| self.error(at + offset, reason))
    }

    fn error(&self, position: usize, reason: &'static str) -> Error {
        error(self.filter, position, reason)
    }
}

pub(super) fn error(filter: &str, position: usize, reason: &'static str) -> Error {
    let quoted: String = filter.chars().take(QUOTED_CHARS_MAX).collect();
    Error { filter: quoted, position, reason }
}

/// Longest filter in bytes. Clients write tens of bytes, scripts that join ids a few thousand.
pub(super) const FILTER_LEN_MAX: usize = 64 * 1024;

/// Hostile input is quoted in errors, so its length is bounded.
const QUOTED_CHARS_MAX: usize = 160;
