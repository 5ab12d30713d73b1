//! `{{ … }}` in the texts of a mount: places of mounts that come before it in the list.

use super::{Error, Result};

/// What one mount of a list can know of those before it.
pub(super) trait Earlier {
    /// Where mount `index` is mounted, if the daemon mounted it.
    fn mount(&self, index: usize) -> Option<String>;
    /// The source of mount `index`.
    fn source(&self, index: usize) -> Option<String>;
    /// The target of mount `index`.
    fn target(&self, index: usize) -> Option<String>;
}

/// Which mounts `text` needs to be mounted before it means anything.
pub(super) fn needed(text: &str) -> Result<Vec<usize>> {
    let mut needed = Vec::new();
    walk(text, &mut |_| {}, &mut |word| {
        match word {
            Word::Mount(index) => needed.push(index),
            Word::Overlay(from, to) => needed.extend(span(from, to)?),
            Word::Source(_) | Word::Target(_) => {}
        }
        Ok(())
    })?;
    Ok(needed)
}

/// `text` with every template replaced.
pub(super) fn fill(text: &str, earlier: &dyn Earlier) -> Result<String> {
    let filled = std::cell::RefCell::new(String::new());
    let missing =
        |index| Error::invalid(format!("template names mount {index}, which is not there"));
    walk(text, &mut |plain| filled.borrow_mut().push_str(plain), &mut |word| {
        let value = match word {
            Word::Mount(index) => earlier.mount(index).ok_or_else(|| missing(index))?,
            Word::Source(index) => earlier.source(index).ok_or_else(|| missing(index))?,
            Word::Target(index) => earlier.target(index).ok_or_else(|| missing(index))?,
            Word::Overlay(from, to) => {
                let places = span(from, to)?
                    .into_iter()
                    .map(|index| earlier.mount(index).ok_or_else(|| missing(index)));
                places.collect::<Result<Vec<_>>>()?.join(":")
            }
        };
        filled.borrow_mut().push_str(&value);
        Ok(())
    })?;
    Ok(filled.into_inner())
}

enum Word {
    Mount(usize),
    Source(usize),
    Target(usize),
    Overlay(usize, usize),
}

/// Splits `text` into what stands outside braces and what stands inside.
fn walk<'t>(
    text: &'t str,
    plain: &mut dyn FnMut(&'t str),
    each: &mut dyn FnMut(Word) -> Result<()>,
) -> Result<()> {
    let mut rest = text;
    while let Some((before, inside)) = rest.split_once("{{") {
        plain(before);
        let Some((inside, behind)) = inside.split_once("}}") else {
            return Err(Error::invalid(format!("template {text:?} does not end")));
        };
        each(word(inside)?)?;
        rest = behind;
    }
    plain(rest);
    Ok(())
}

fn word(inside: &str) -> Result<Word> {
    let unknown = || Error::invalid(format!("template {:?} means nothing", inside.trim()));
    let words: Vec<&str> = inside.split_whitespace().collect();
    let index = |text: &str| match text.parse::<usize>() {
        Ok(index) if index < super::MOUNTS_MAX => Ok(index),
        _ => Err(unknown()),
    };
    match words[..] {
        ["mount", at] => Ok(Word::Mount(index(at)?)),
        ["source", at] => Ok(Word::Source(index(at)?)),
        ["target", at] => Ok(Word::Target(index(at)?)),
        ["overlay", from, to] => Ok(Word::Overlay(index(from)?, index(to)?)),
        _ => Err(unknown()),
    }
}

/// From one index to another, in either direction, both included.
fn span(from: usize, to: usize) -> Result<Vec<usize>> {
    Ok(if from <= to { (from..=to).collect() } else { (to..=from).rev().collect() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Places;

    impl Earlier for Places {
        fn mount(&self, index: usize) -> Option<String> {
            (index < 3).then(|| format!("/m/{index}"))
        }
        fn source(&self, index: usize) -> Option<String> {
            (index < 3).then(|| format!("s{index}"))
        }
        fn target(&self, index: usize) -> Option<String> {
            (index < 3).then(String::new)
        }
    }

    #[test]
    fn templates_are_replaced_by_places() {
        let fill = |text| fill(text, &Places).unwrap();
        assert_eq!(fill("lowerdir={{ overlay 0 2 }}"), "lowerdir=/m/0:/m/1:/m/2");
        assert_eq!(fill("{{overlay 2 1}}"), "/m/2:/m/1");
        assert_eq!(fill("{{ mount 1 }}/x {{ source 0 }}"), "/m/1/x s0");
        assert_eq!(fill("no template"), "no template");
        assert_eq!(needed("{{ overlay 1 0 }}{{ source 2 }}{{ mount 2 }}").unwrap(), [1, 0, 2]);
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for text in [
            "{{",
            "{{ mount }}",
            "{{ mount 9 }}",
            "{{ mount -1 }}",
            "{{ exec 0 }}",
            "{{ overlay 0 99999999999999999999 }}",
            "{{ mount 0 0 }}",
        ] {
            assert!(fill(text, &Places).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_filled_or_refused(text in "([{} a-z0-9]|\\PC){0,60}") {
            let _ = fill(&text, &Places);
        }
    }
}
