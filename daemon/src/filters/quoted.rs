//! Takes the quotes and escapes off quoted text.

use std::iter::Peekable;
use std::str::CharIndices;

/// The text inside `quoted`, which starts and ends with the same quote; what is wrong otherwise,
/// and where, in bytes from its start.
pub(super) fn unquote(quoted: &str) -> Result<String, (usize, &'static str)> {
    let mut chars = quoted.char_indices().peekable();
    let Some((_, quote)) = chars.next() else { return Err((0, "expected a quote")) };
    let mut bytes = Vec::with_capacity(quoted.len());
    loop {
        match chars.next() {
            Some((_, c)) if c == quote => break,
            Some((at, '\\')) => {
                escape(&mut chars, quote, &mut bytes).map_err(|reason| (at, reason))?
            }
            Some((at, '\n')) => return Err((at, "new-line inside quotes")),
            Some((_, c)) => push(&mut bytes, c),
            None => return Err((quoted.len(), "quote is not closed")),
        }
    }
    if let Some((at, _)) = chars.next() {
        return Err((at, "text behind the closing quote"));
    }
    String::from_utf8(bytes)
        .map_err(|error| (error.utf8_error().valid_up_to(), "escapes do not make up UTF-8"))
}

fn escape(
    chars: &mut Peekable<CharIndices<'_>>,
    quote: char,
    bytes: &mut Vec<u8>,
) -> Result<(), &'static str> {
    let Some((_, kind)) = chars.next() else { return Err("escape is cut off") };
    match kind {
        'a' => bytes.push(0x07),
        'b' => bytes.push(0x08),
        'f' => bytes.push(0x0c),
        'n' => bytes.push(b'\n'),
        'r' => bytes.push(b'\r'),
        't' => bytes.push(b'\t'),
        'v' => bytes.push(0x0b),
        '\\' => bytes.push(b'\\'),
        c if c == quote => push(bytes, c),
        'x' => bytes.push(number(chars, 0, 2, 16)? as u8),
        'u' => push_code(bytes, number(chars, 0, 4, 16)?)?,
        'U' => push_code(bytes, number(chars, 0, 8, 16)?)?,
        digit @ '0'..='7' => {
            let first = digit as u32 - '0' as u32;
            let value = number(chars, first, 2, 8)?;
            bytes.push(u8::try_from(value).map_err(|_| "octal escape above 377")?);
        }
        _ => return Err("unknown escape"),
    }
    Ok(())
}

/// Continues a number with exactly `digits` more digits.
fn number(
    chars: &mut Peekable<CharIndices<'_>>,
    first: u32,
    digits: usize,
    radix: u32,
) -> Result<u32, &'static str> {
    let mut value = first;
    for _ in 0..digits {
        let digit = chars
            .next_if(|(_, c)| c.is_digit(radix))
            .and_then(|(_, c)| c.to_digit(radix))
            .ok_or("too few digits in escape")?;
        value = value.wrapping_mul(radix).wrapping_add(digit);
    }
    Ok(value)
}

fn push(bytes: &mut Vec<u8>, c: char) {
    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

fn push_code(bytes: &mut Vec<u8>, code: u32) -> Result<(), &'static str> {
    push(bytes, char::from_u32(code).ok_or("escape names no character")?);
    Ok(())
}
