use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// An object whose fields are the entries of a map, `labels` being looked up by the rest.
struct Fields {
    fields: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
}

impl Adaptor for Fields {
    fn field<'a>(&'a self, path: &[String]) -> Option<Cow<'a, str>> {
        match path.split_first() {
            Some((first, rest)) if first == "labels" => label(&self.labels, rest),
            _ => self.fields.get(&path.join(".")).map(|value| Cow::Borrowed(value.as_str())),
        }
    }
}

fn object(fields: &[(&str, &str)], labels: &[(&str, &str)]) -> Fields {
    let owned = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    Fields { fields: owned(fields), labels: owned(labels) }
}

fn matches(filter: &str, object: &Fields) -> bool {
    Filters::parse(&[filter]).unwrap_or_else(|error| panic!("{error}")).matches(object)
}

#[test]
fn filters_that_clients_send_select_what_they_mean() {
    let event = object(&[("namespace", "moby"), ("topic", "/tasks/exit")], &[]);
    assert!(matches("namespace==moby,topic~=|^/tasks/|", &event));
    assert!(!matches("namespace==plugins.moby,topic~=|^/tasks/|", &event));
    assert!(!matches("namespace==moby,topic~=|^/images/|", &event));

    let image = object(
        &[("name", "docker.io/library/alpine:latest"), ("target.digest", "sha256:abcdef")],
        &[],
    );
    assert!(matches("name==docker.io/library/alpine:latest", &image));
    assert!(matches("target.digest~=^sha256:abc.*$", &image));
    assert!(!matches("target.digest~=^sha256:abd.*$", &image));
    assert!(matches(r#"name~="^docker\\.io/library/alpine:[\\w][\\w.-]{0,127}$""#, &image));
    assert!(!matches(r#"name~="^docker\\.io/library/alpin:[\\w][\\w.-]{0,127}$""#, &image));

    let container = object(&[("id", &"4f".repeat(32))], &[("nerdctl/namespace", "x")]);
    assert!(matches(r#"labels."nerdctl/namespace"==x"#, &container));
    assert!(matches(&format!("id=={}", "4f".repeat(32)), &container));

    let lease = object(&[], &[("moby/prune.images", "true")]);
    assert!(matches(r#"labels."moby/prune.images""#, &lease));
    assert!(!matches(r#"labels."moby/prune.images""#, &container));

    let plugin = object(&[("type", "io.containerd.snapshotter.v1"), ("id", "overlayfs")], &[]);
    assert!(matches("type==io.containerd.snapshotter.v1, id==overlayfs", &plugin));
    assert!(matches(r#"type=="io.containerd.snapshotter.v1""#, &plugin));
    assert!(!matches("type==io.containerd.runtime.v2", &plugin));

    let layer = object(
        &[("parent", "sha256:11")],
        &[("containerd.io/uncompressed", "sha256:22"), ("containerd.io/snapshot.ref", "sha256:33")],
    );
    assert!(matches(r#"labels."containerd.io/uncompressed"==sha256:22"#, &layer));
    assert!(matches(
        r#"labels."containerd.io/snapshot.ref"==sha256:33,parent=="sha256:11""#,
        &layer
    ));
}

#[test]
fn no_filter_and_the_empty_filter_hold_for_everything() {
    let nothing = object(&[], &[]);
    assert!(Filters::parse::<&str>(&[]).unwrap().matches(&nothing));
    assert!(matches("", &nothing));
}

#[test]
fn one_filter_of_a_list_is_enough_but_all_its_selectors_must_hold() {
    let it = object(&[("a", "1"), ("b", "2")], &[]);
    let any = |filters: &[&str]| Filters::parse(filters).unwrap().matches(&it);
    assert!(any(&["a==0", "b==2"]));
    assert!(!any(&["a==0", "b==0"]));
    assert!(any(&["a==1,b==2"]));
    assert!(!any(&["a==1,b==0"]));
}

#[test]
fn absent_fields_differ_from_everything_but_the_empty_text() {
    let it = object(&[("empty", "")], &[]);
    assert!(!matches("missing", &it));
    assert!(matches("empty", &it));
    assert!(!matches(r#"missing=="""#, &it));
    assert!(matches(r#"empty=="""#, &it));
    assert!(matches("missing!=x", &it));
    assert!(!matches(r#"missing!="""#, &it));
    assert!(matches("missing~=^$", &it));
    assert!(!matches("missing~=x", &it));
}

#[test]
fn label_keys_hold_dots_with_and_without_quotes() {
    let it = object(&[], &[("a.b", "1"), ("a/b.c", "2")]);
    assert!(matches("labels.a.b==1", &it));
    assert!(matches(r#"labels."a.b"==1"#, &it));
    assert!(matches(r#"labels."a/b.c"==2"#, &it));
    assert!(matches(r#"labels."a/b".c==2"#, &it));
    assert!(!matches("labels", &it));
}

#[test]
fn values_may_hold_what_fields_may_not() {
    for value in ["a/b", "a:b@c", "^x$", "(a|b)", "[0-9]{2}*", "a=b", "é", "a.b", "x\"y", "a!=~b"]
    {
        let it = object(&[("f", value)], &[]);
        assert!(matches(&format!("f=={value}"), &it), "{value}");
    }
    assert!(matches("f==  spaced  , g == 2", &object(&[("f", "spaced"), ("g", "2")], &[])));
}

#[test]
fn escapes_in_quotes_are_those_of_go() {
    let cases = [
        (r#""\a\b\f\n\r\t\v\\\"""#, "\x07\x08\x0c\n\r\t\x0b\\\""),
        (r#""\101\x41\u0041\U00000041""#, "AAAA"),
        (r#""\u00e9\xc3\xa9""#, "éé"),
    ];
    for (quoted, plain) in cases {
        assert!(matches(&format!("f=={quoted}"), &object(&[("f", plain)], &[])), "{quoted}");
    }
    assert!(matches(r"f~=/a\/b/", &object(&[("f", "a/b")], &[])));
    assert!(matches(r"f~=|a\|b|", &object(&[("f", "b")], &[])));
}

#[test]
fn malformed_filters_are_refused() {
    for bad in [
        ",",
        ".",
        "a,",
        "a.",
        "a..b",
        "==b",
        "a=",
        "a=b",
        "a==",
        "a==,",
        "a==.b",
        "a===b",
        "a=!b",
        "a!b",
        "a~b",
        "a==b c",
        "a b",
        "a==b,,c",
        "\"a",
        "\"a\nb\"",
        "a==\"b",
        "a==/b/",
        "a==|b|",
        "|a|",
        "a==\"\\q\"",
        "a==\"\\x4\"",
        "a==\"\\400\"",
        "a==\"\\ud800\"",
        "a==\"\\xff\"",
        "a-b==c",
        "a~=/\\d/",
        "a==\u{7}",
        "é==x",
    ] {
        assert!(Filters::parse(&[bad]).is_err(), "{bad:?} was accepted");
    }
}

#[test]
fn a_pattern_that_does_not_compile_or_explodes_matches_nothing() {
    let it = object(&[("f", "aaaa")], &[]);
    for pattern in ["(", "[z-a]", r#""(?:(?:a{1000}){1000}){1000}""#, r#""\\p{Nonsense}""#] {
        assert!(!matches(&format!("f~={pattern}"), &it), "{pattern}");
    }
}

#[test]
fn patterns_are_unanchored_and_know_flags_and_classes() {
    let it = object(&[("f", "Redis-7")], &[]);
    for pattern in ["edis", "^Redis", "(?i)redis", "[[:digit:]]$", "R.*7", r#""\\d""#, "(?P<n>e)"] {
        assert!(matches(&format!("f~={pattern}"), &it), "{pattern}");
    }
    assert!(matches("f~=^[é]$", &object(&[("f", "é")], &[])));
}

#[test]
fn oversized_filters_are_refused() {
    let long = format!("a=={}", "x".repeat(parser::FILTER_LEN_MAX));
    assert!(Filters::parse(&[&long]).is_err());
}

#[test]
fn requests_with_too_many_selectors_are_refused() {
    let many = vec!["a~=b"; super::PATTERNS_MAX + 1];
    assert!(Filters::parse(&many).is_err());
    assert!(Filters::parse(&many[1..]).is_ok());
    let long = vec!["a,".repeat(30_000) + "a"; 3];
    assert!(Filters::parse(&long).is_err());
    assert!(Filters::parse(&long[1..]).is_ok());
}

/// A selector as the grammar has it, and what it means.
#[derive(Clone, Debug)]
struct Meant {
    field: &'static str,
    operator: &'static str,
    value: String,
    quoted: bool,
    spaced: bool,
}

impl Meant {
    fn text(&self) -> String {
        let space = if self.spaced { " " } else { "" };
        let value = match (self.operator, self.quoted) {
            ("", _) => String::new(),
            (_, true) => format!("\"{}\"", self.value),
            (_, false) => self.value.clone(),
        };
        format!("{space}{}{space}{}{space}{value}{space}", self.field, self.operator)
    }

    fn holds(&self, found: Option<&str>) -> bool {
        match self.operator {
            "" => found.is_some(),
            "==" => found == Some(self.value.as_str()),
            "!=" => found.unwrap_or_default() != self.value,
            _ => found.unwrap_or_default().contains(&self.value),
        }
    }
}

fn selector() -> impl Strategy<Value = Meant> {
    let field = prop::sample::select(vec!["f", "g", "labels.a", "labels.a.b", "absent"]);
    let operator = prop::sample::select(vec!["", "==", "!=", "~="]);
    (field, operator, "[a-c]{1,2}", any::<bool>(), any::<bool>()).prop_map(
        |(field, operator, value, quoted, spaced)| Meant { field, operator, value, quoted, spaced },
    )
}

proptest! {
    #[test]
    fn filters_mean_what_the_grammar_says(
        any in prop::collection::vec(prop::collection::vec(selector(), 1..4), 1..4),
        values in prop::collection::vec(prop::option::of("[a-c]{1,2}"), 4),
    ) {
        let names = ["f", "g", "labels.a", "labels.a.b"];
        let found = |field: &str| {
            let index = names.iter().position(|name| *name == field)?;
            values[index].as_deref()
        };
        let pairs = |range: std::ops::Range<usize>| -> Vec<(&str, &str)> {
            let named = range.filter_map(|index| {
                let name = names[index].trim_start_matches("labels.");
                Some((name, values[index].as_deref()?))
            });
            named.collect()
        };
        let it = object(&pairs(0..2), &pairs(2..4));
        let texts: Vec<String> = any
            .iter()
            .map(|all| all.iter().map(Meant::text).collect::<Vec<_>>().join(","))
            .collect();
        let meant =
            any.iter().any(|all| all.iter().all(|selector| selector.holds(found(selector.field))));
        let parsed = Filters::parse(&texts);
        prop_assert!(parsed.is_ok(), "{texts:?}: {parsed:?}");
        prop_assert_eq!(parsed.unwrap().matches(&it), meant, "{:?}", texts);
    }

    #[test]
    fn any_text_parses_or_is_refused_within_its_length(text in "(?s).{0,60}") {
        if let Err(error) = Filters::parse(&[&text]) {
            prop_assert!(error.position <= text.len().max(parser::FILTER_LEN_MAX));
        }
    }

    #[test]
    fn token_soup_never_panics(text in r#"([a-c.,=!~"/|\\ \n0-7xuU]){0,40}"#) {
        if let Ok(filters) = Filters::parse(&[&text]) {
            filters.matches(&object(&[("a", "b")], &[("c", "")]));
        }
    }

    #[test]
    fn quoting_a_value_does_not_change_it(value in "[^\n]{0,40}") {
        let quoted = value.replace('\\', r"\\").replace('"', "\\\"");
        let it = object(&[("f", &value)], &[]);
        let filter = format!(r#"f=="{quoted}""#);
        prop_assert!(matches(&filter, &it));
    }

    #[test]
    fn quoting_a_label_key_finds_it(key in "[^\n]{1,40}") {
        let quoted = key.replace('\\', r"\\").replace('"', "\\\"");
        let it = object(&[], &[(&key, "v")]);
        let filter = format!(r#"labels."{quoted}"==v"#);
        prop_assert!(matches(&filter, &it));
    }
}
