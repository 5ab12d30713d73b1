//! Splits a filter into tokens.

/// A piece of a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'f> {
    /// A field name.
    Field(&'f str),
    /// An unquoted value.
    Value(&'f str),
    /// Quoted text with its quotes.
    Quoted(&'f str),
    /// `.` or `,`.
    Separator(char),
    /// A run of `=`, `!` and `~`.
    Operator(&'f str),
    /// Text that starts no token, or quoted text that does not end.
    Illegal,
    /// Nothing is left.
    End,
}

/// Reads one token after the other.
///
/// The same text reads differently in different places: right behind an operator a bare word is a
/// value and may hold nearly anything, elsewhere it is a field name.
#[derive(Clone, Debug)]
pub(super) struct Scanner<'f> {
    input: &'f str,
    position: usize,
    expects_value: bool,
}

impl<'f> Scanner<'f> {
    pub(super) fn new(input: &'f str) -> Self {
        Self { input, position: 0, expects_value: false }
    }

    /// The next token and where it starts, in bytes.
    pub(super) fn next(&mut self) -> (usize, Token<'f>) {
        self.take_while(char::is_whitespace);
        let start = self.position;
        let Some(first) = self.rest().chars().next() else { return (start, Token::End) };
        let token = match first {
            '"' | '/' | '|' => match self.quoted(first) {
                Some(text) => Token::Quoted(text),
                None => Token::Illegal,
            },
            '.' | ',' => {
                self.position += 1;
                self.expects_value = false;
                Token::Separator(first)
            }
            '=' | '!' | '~' => {
                let operator = self.take_while(|c| matches!(c, '=' | '!' | '~'));
                self.expects_value = true;
                Token::Operator(operator)
            }
            _ if self.expects_value => match self.take_while(is_value) {
                "" => Token::Illegal,
                value => {
                    self.expects_value = false;
                    Token::Value(value)
                }
            },
            _ => match self.take_while(is_field) {
                "" => Token::Illegal,
                field => Token::Field(field),
            },
        };
        if matches!(token, Token::Quoted(_)) {
            self.expects_value = false;
        }
        (start, token)
    }

    /// The next token without taking it.
    pub(super) fn peek(&self) -> Token<'f> {
        self.clone().next().1
    }

    fn rest(&self) -> &'f str {
        &self.input[self.position..]
    }

    fn take_while(&mut self, belongs: impl Fn(char) -> bool) -> &'f str {
        let rest = self.rest();
        let length = rest.find(|c| !belongs(c)).unwrap_or(rest.len());
        self.position += length;
        &rest[..length]
    }

    /// Text up to the closing `quote`, which a backslash takes the meaning from.
    fn quoted(&mut self, quote: char) -> Option<&'f str> {
        let rest = self.rest();
        let mut escaped = false;
        for (index, c) in rest.char_indices().skip(1) {
            match c {
                '\n' => return None,
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                c if c == quote => {
                    let end = index + c.len_utf8();
                    self.position += end;
                    return Some(&rest[..end]);
                }
                _ => {}
            }
        }
        None
    }
}

fn is_field(c: char) -> bool {
    c == '_' || c.is_ascii_alphanumeric()
}

fn is_value(c: char) -> bool {
    c != ',' && !c.is_whitespace() && !c.is_control()
}
