//! The static Huffman code of HPACK (RFC 7541, appendix B), reading only.
//!
//! The code is canonical: the length of each symbol's code says all there is to know.

use std::sync::OnceLock;

/// Decodes `bytes`; `None` when they are not what an encoder may write.
pub(super) fn decode(bytes: &[u8]) -> Option<Vec<u8>> {
    let code = code();
    let mut text = Vec::with_capacity(bytes.len() * 8 / 5);
    let (mut bits, mut length) = (0_u32, 0_usize);
    for bit in bytes.iter().flat_map(|byte| (0..8).rev().map(move |shift| byte >> shift & 1)) {
        bits = bits << 1 | u32::from(bit);
        length += 1;
        if length > LENGTH_MAX {
            return None;
        }
        let Some(index) = bits.checked_sub(code.first[length]) else { continue };
        if index < code.count[length] {
            let symbol = code.symbols[(code.offset[length] + index) as usize];
            // The end-of-string symbol must not appear.
            text.push(u8::try_from(symbol).ok()?);
            (bits, length) = (0, 0);
        }
    }
    // Padding is the beginning of the end-of-string symbol, all ones, and less than a byte.
    (length < 8 && bits == (1 << length) - 1).then_some(text)
}

/// The codes of each length: the first of them, how many, and where their symbols begin.
struct Code {
    first: [u32; LENGTH_MAX + 1],
    count: [u32; LENGTH_MAX + 1],
    offset: [u32; LENGTH_MAX + 1],
    symbols: Vec<u16>,
}

fn code() -> &'static Code {
    static CODE: OnceLock<Code> = OnceLock::new();
    CODE.get_or_init(|| {
        let mut code = Code {
            first: [0; LENGTH_MAX + 1],
            count: [0; LENGTH_MAX + 1],
            offset: [0; LENGTH_MAX + 1],
            symbols: Vec::with_capacity(LENGTHS.len()),
        };
        let (mut next, mut offset) = (0_u32, 0_u32);
        for length in 1..=LENGTH_MAX {
            next <<= 1;
            code.first[length] = next;
            code.offset[length] = offset;
            for (symbol, _) in (0_u16..).zip(LENGTHS).filter(|(_, l)| usize::from(*l) == length) {
                code.symbols.push(symbol);
                next += 1;
                offset += 1;
            }
            code.count[length] = next - code.first[length];
        }
        code
    })
}

/// Bits of the longest code.
const LENGTH_MAX: usize = 30;

/// Bits of the code of each byte, and of the end of a string.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5,
    5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5,
    6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11,
    14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23,
    23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23,
    23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25,
    26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20,
    24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28,
    27, 27, 27, 27, 27, 26, 30,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_standard_decode() {
        let host = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(decode(&host).unwrap(), b"www.example.com");
        let control = [0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf];
        assert_eq!(decode(&control).unwrap(), b"no-cache");
        assert_eq!(decode(&[]).unwrap(), b"");
    }

    #[test]
    fn wrong_padding_is_refused() {
        assert_eq!(decode(&[0xff, 0xff]), None, "more than seven bits of padding");
        assert_eq!(decode(&[0x18]), None, "padding of zeros");
    }
}
