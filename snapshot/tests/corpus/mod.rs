//! Archives as tools write them, as they should not, and with single bytes changed: the same in
//! every run.

use crated_snapshot::testsuite::{Item, LayerBuilder, header, seal};

/// An archive and what to call it.
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

/// All of them.
pub(crate) fn samples() -> Vec<Sample> {
    let mut samples = Vec::new();
    let mut add = |name: &str, layer: LayerBuilder| {
        samples.push(Sample { name: name.to_owned(), bytes: layer.finish() });
    };
    names(&mut add);
    kinds(&mut add);
    sizes(&mut add);
    extensions(&mut add);
    numbers(&mut add);
    ends(&mut samples);
    damaged(&mut samples);
    samples
}

type Add<'a> = &'a mut dyn FnMut(&str, LayerBuilder);

fn new() -> LayerBuilder {
    LayerBuilder::new()
}

fn long(kind: u8, text: &[u8]) -> Item<'_> {
    Item { kind, name: b"././@LongLink", data: text, mode: 0, mtime: 0, ..Item::default() }
}

fn names(add: Add<'_>) {
    let hundred = "n".repeat(100);
    let (deep, text) = (format!("{}/{}", "d".repeat(140), "f".repeat(90)), b"text".as_slice());
    let terminated = [deep.as_bytes(), b"\0"].concat();
    add("plain", new().dir("a/").file("a/b", text).symlink("a/c", "b").hard_link("a/d", "a/b"));
    add("dot", new().dir("./").dir("./a/").file("./a/b", text));
    add("hundred bytes", new().file(&hundred, text));
    add("prefix", new().raw(&with_prefix("d/e", "f", 4)).data(text));
    add("long prefix", new().raw(&with_prefix(&"p".repeat(155), &hundred, 4)).data(text));
    add("gnu long name", new().item(&long(b'L', &terminated)).file("short", text).file("z", b""));
    add("gnu long name unterminated", new().item(&long(b'L', deep.as_bytes())).file("s", text));
    let link = Item { kind: b'2', name: b"link", link: b"short", ..Item::default() };
    add("gnu long link", new().item(&long(b'K', &terminated)).item(&link).file("z", b""));
    let both = new().item(&long(b'K', &terminated)).item(&long(b'L', &terminated));
    add("gnu long both", both.item(&link).file("z", b""));
    add("pax path", new().pax(&[("path", deep.as_bytes())]).file("short", text).file("z", b""));
    let directory = Item { kind: b'5', name: b"short", ..Item::default() };
    add("pax path of a directory", new().pax(&[("path", b"a/b/")]).item(&directory));
    let layer =
        new().pax(&[("path", b"of/pax")]).item(&long(b'L', b"of/gnu\0")).file("short", text);
    add("pax path then gnu", layer);
    let layer =
        new().item(&long(b'L', b"of/gnu\0")).pax(&[("path", b"of/pax")]).file("short", text);
    add("gnu then pax path", layer);
    let layer =
        new().item(&long(b'L', b"first\0")).item(&long(b'L', b"second\0")).file("short", text);
    add("two long names", layer);
    let layer = new().pax(&[("path", b"first")]).pax(&[("path", b"second")]).file("short", text);
    add("two pax headers", layer);
    add("pax path twice", new().pax(&[("path", b"first"), ("path", b"second")]).file("s", text));
    add("pax path with a slash", new().pax(&[("path", b"a/")]).file("short", text));
    add("name with a slash", new().file("a/", text).file("z", b""));
    add("same name twice", new().file("a", text).file("a", b"other").file("z", b""));
}

fn kinds(add: Add<'_>) {
    for kind in *b"0123456 7" {
        let kind = if kind == b' ' { 0 } else { kind };
        let item =
            Item { kind, name: b"entry", link: b"target", device: (1, 3), ..Item::default() };
        let named = if kind == 0 { "nul".to_owned() } else { char::from(kind).to_string() };
        add(&format!("kind {named}"), new().file("target", b"x").item(&item).file("z", b""));
    }
    for kind in *b"89AMNSVXg" {
        let item = Item { kind, name: b"entry", data: b"19 comment=nothing\n", ..Item::default() };
        let named = char::from(kind);
        add(&format!("kind {named} with data"), new().item(&item).file("z", b""));
    }
    let volume = Item { kind: b'V', name: b"label", ..Item::default() };
    add("volume label", new().item(&volume).file("z", b""));
    let global = Item { kind: b'g', name: b"g", data: b"13 path=glob\n", ..Item::default() };
    add("global path", new().item(&global).file("a", b"x").file("b", b"y"));
}

fn sizes(add: Add<'_>) {
    let inner = new().file("smuggled", b"x").finish();
    let size = inner.len().to_string();
    let data = |size: u64| header(&Item { name: b"inner", ..Item::default() }, size);
    for (name, in_header) in [("zero", 0), ("right", inner.len() as u64), ("small", 512)] {
        let pax = new().pax(&[("size", size.as_bytes())]);
        let layer = pax.raw(&data(in_header)).data(&inner).file("z", b"");
        add(&format!("pax size over {name}"), layer);
    }
    add("pax size zero", new().pax(&[("size", b"0")]).raw(&data(2048)).data(&inner).file("z", b""));
    for text in ["-1", "", "0x10", "18446744073709551616", "9223372036854775807", " 4", "4 ", "+4"]
    {
        let layer = new().pax(&[("size", text.as_bytes())]).file("a", b"four").file("z", b"");
        add(&format!("pax size {text:?}"), layer);
    }
    for kind in *b"12356" {
        let item = Item { kind, name: b"n", link: b"f", device: (1, 3), ..Item::default() };
        let layer = new().file("f", b"").raw(&header(&item, inner.len() as u64)).data(&inner);
        add(&format!("data after kind {}", char::from(kind)), layer.file("z", b""));
    }
}

fn extensions(add: Add<'_>) {
    let pax = |data: &[u8]| {
        let item = Item { kind: b'x', name: b"pax", data, ..Item::default() };
        new().item(&item).file("file", b"data").file("z", b"")
    };
    let records: [(&str, &[u8]); 14] = [
        ("empty", b""),
        ("good", b"11 path=ab\n"),
        ("no newline", b"11 path=abc"),
        ("short length", b"10 path=ab\n"),
        ("long length", b"12 path=ab\n"),
        ("no length", b"path=ab\n"),
        ("leading zero", b"012 path=ab\n"),
        ("leading space", b" 12 path=ab\n"),
        ("no equals", b"8 pathx\n"),
        ("empty value", b"8 path=\n"),
        ("empty key", b"6 =ab\n"),
        ("nul in path", b"12 path=a\0b\n"),
        ("padded", b"11 path=ab\n\0\0\0"),
        ("unknown key", b"18 VENDOR.key=word\n"),
    ];
    for (name, data) in records {
        add(&format!("pax record {name}"), pax(data));
    }
    add("pax times", new().pax(&[("mtime", b"1.5"), ("atime", b"-3.25")]).file("a", b"x"));
    add("pax owner", new().pax(&[("uid", b"4000000000"), ("gid", b"7")]).file("a", b"x"));
    let sparse = |records: &[(&str, &[u8])], data: &[u8]| {
        new().pax(records).file("placeholder", data).file("z", b"")
    };
    add("sparse 0.1", {
        let map = ("GNU.sparse.map", b"0,3,100,3".as_slice());
        let count = ("GNU.sparse.numblocks", b"2".as_slice());
        let name = ("GNU.sparse.name", b"holes".as_slice());
        sparse(&[("GNU.sparse.size", b"200"), count, name, map], b"abcdef")
    });
    add("sparse 1.0", {
        let mut data = b"2\n0\n3\n100\n3\n".to_vec();
        data.resize(512, 0);
        data.extend_from_slice(b"abcdef");
        let version =
            [("GNU.sparse.major", b"1".as_slice()), ("GNU.sparse.minor", b"0".as_slice())];
        let rest =
            [("GNU.sparse.name", b"holes".as_slice()), ("GNU.sparse.realsize", b"200".as_slice())];
        sparse(&[version, rest].concat(), &data)
    });
}

fn numbers(add: Add<'_>) {
    let plain = Item { name: b"n", ..Item::default() };
    let field = |at: usize, bytes: &[u8]| {
        let mut block = header(&plain, 4);
        block[at..at + bytes.len()].copy_from_slice(bytes);
        seal(&mut block);
        new().raw(&block).data(b"four").file("z", b"")
    };
    let texts: [(&str, &[u8]); 12] = [
        ("spaces before", b"          4\0"),
        ("space after", b"0000000004 \0"),
        ("unterminated", b"000000000004"),
        ("all nul", &[0; 12]),
        ("all spaces", b"            "),
        ("decimal", b"00000000009\0"),
        ("nul in the middle", b"00000\x000004\0\0"),
        ("negative", b"-0000000004\0"),
        ("base 256", b"\x80\0\0\0\0\0\0\0\0\0\0\x04"),
        ("base 256 negative", &[0xff; 12]),
        ("base 256 huge", b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
        ("base 64", b"+AAAAAAAAAA\0"),
    ];
    for (name, text) in texts {
        add(&format!("size {name}"), field(124, text));
    }
    add("mode odd", field(100, b"abcdefg\0"));
    add("owner odd", field(108, b"9999999\0"));
    add("time negative in base 256", field(136, &[0xff; 12]));
    add("gnu magic", field(257, b"ustar  \0"));
    add("no magic", field(257, &[0; 8]));
    add("odd version", field(257, b"ustar\x0099"));
    let mut signed = header(&Item { name: "n\u{ff}".as_bytes(), ..Item::default() }, 0);
    let sum = 8 * i32::from(b' ')
        + signed
            .iter()
            .enumerate()
            .filter(|(at, _)| !(148..156).contains(at))
            .map(|(_, byte)| i32::from(byte.cast_signed()))
            .sum::<i32>();
    signed[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    add("signed checksum", new().raw(&signed).file("z", b""));
}

fn ends(samples: &mut Vec<Sample>) {
    let body = || new().file("a", b"text").file("b", b"more");
    let whole = body().finish();
    let mut add = |name: &str, bytes: Vec<u8>| {
        samples.push(Sample { name: name.to_owned(), bytes });
    };
    add("nothing", Vec::new());
    add("end alone", vec![0; 1024]);
    add("no end", body().unfinished());
    add("half an end", body().raw(&[0; 512]).unfinished());
    add("zero block inside", body().raw(&[0; 512]).file("c", b"x").finish());
    add("two archives", [whole.clone(), whole.clone()].concat());
    add("rubbish after the end", [&whole[..], &[7; 512]].concat());
    add("much padding", body().raw(&[0; 9216]).unfinished());
    for cut in [1, 511, 512, 600, 1024, 1030, 1536] {
        add(&format!("cut at {cut}"), whole[..cut].to_vec());
    }
    add("dangling pax", new().file("a", b"x").pax(&[("path", b"x")]).finish());
    add("dangling long name", new().file("a", b"x").item(&long(b'L', b"x\0")).finish());
}

/// Archives of every kind of entry with one byte changed.
fn damaged(samples: &mut Vec<Sample>) {
    let link = Item { kind: b'2', name: b"c", link: b"a", ..Item::default() };
    let whole = new()
        .dir("d/")
        .file("a", b"text")
        .pax(&[("path", b"from/pax"), ("mtime", b"12.5")])
        .file("b", &[b'x'; 700])
        .item(&long(b'L', b"from/gnu\0"))
        .item(&link)
        .hard_link("e", "a")
        .finish();
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut next = |limit: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % limit as u64) as usize
    };
    for number in 0..160 {
        let mut bytes = whole.clone();
        let at = next(whole.len() - 1024);
        bytes[at] ^= 1 << next(8);
        // Without the right sum nearly all of them would end at the first look.
        let block = at / 512 * 512;
        if let Ok(header) = <&mut [u8; 512]>::try_from(&mut bytes[block..block + 512])
            && header[257..262] == *b"ustar"
        {
            seal(header);
        }
        samples.push(Sample { name: format!("damage {number} at {at}"), bytes });
    }
}

fn with_prefix(prefix: &str, name: &str, size: u64) -> [u8; 512] {
    let mut block = header(&Item { name: name.as_bytes(), ..Item::default() }, size);
    block[345..345 + prefix.len()].copy_from_slice(prefix.as_bytes());
    seal(&mut block);
    block
}
