use std::path::PathBuf;

use crated_exec::{Error, Result};

/// What this run shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Make a shim and print its address.
    Start,
    /// Clean up after a shim.
    Delete,
    /// Print what this runtime is.
    Info,
    /// Print versions.
    Version,
}

/// The command line, as daemons of all versions write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Args {
    pub(crate) action: Action,
    pub(crate) namespace: String,
    pub(crate) id: String,
    pub(crate) address: String,
    pub(crate) publish_binary: PathBuf,
    pub(crate) bundle: Option<PathBuf>,
    pub(crate) debug: bool,
}

impl Args {
    /// Parses flags in any order, with one dash or two, with the value after
    /// `=` or as the next word.
    pub(crate) fn parse(words: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut args = Args {
            action: Action::Version,
            namespace: String::new(),
            id: String::new(),
            address: String::new(),
            publish_binary: PathBuf::new(),
            bundle: None,
            debug: false,
        };
        let mut words = words.into_iter();
        let mut asked = false;
        while let Some(word) = words.next() {
            let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
                (args.action, asked) = (action(&word)?, true);
                continue;
            };
            let (flag, inline) = match flag.split_once('=') {
                Some((flag, value)) => (flag, Some(value.to_owned())),
                None => (flag, None),
            };
            match flag {
                "debug" => args.debug = is_true(inline)?,
                "v" | "version" if is_true(inline.clone())? => {
                    (args.action, asked) = (Action::Version, true);
                }
                "info" if is_true(inline.clone())? => {
                    (args.action, asked) = (Action::Info, true);
                }
                "v" | "version" | "info" => {}
                _ => {
                    let value = inline.or_else(|| words.next());
                    args.set(flag, value)?;
                }
            }
        }
        if !asked {
            return Err(Error::InvalidArgument("no action: start or delete".into()));
        }
        args.check()
    }

    fn set(&mut self, flag: &str, value: Option<String>) -> Result<()> {
        let missing = || Error::InvalidArgument(format!("flag -{flag} needs a value"));
        let text = || value.clone().ok_or_else(missing);
        match flag {
            "namespace" => self.namespace = text()?,
            "id" => self.id = text()?,
            "address" => self.address = text()?,
            "publish-binary" => self.publish_binary = text()?.into(),
            "bundle" => self.bundle = Some(text()?).filter(|p| !p.is_empty()).map(PathBuf::from),
            // Where older daemons want the socket; the daemon's address tells.
            "socket" => drop(text()?),
            _ => return Err(Error::InvalidArgument(format!("unknown flag -{flag}"))),
        }
        Ok(())
    }

    fn check(self) -> Result<Self> {
        if matches!(self.action, Action::Version | Action::Info) {
            return Ok(self);
        }
        crated_exec::bundle::check_id(&self.namespace).map_err(|e| e.context("namespace"))?;
        crated_exec::bundle::check_id(&self.id).map_err(|e| e.context("id"))?;
        Ok(self)
    }
}

fn action(word: &str) -> Result<Action> {
    match word {
        "start" => Ok(Action::Start),
        "delete" => Ok(Action::Delete),
        _ => Err(Error::InvalidArgument(format!("unknown action {word:?}"))),
    }
}

fn is_true(value: Option<String>) -> Result<bool> {
    match value.as_deref() {
        None | Some("true" | "1" | "t" | "T" | "TRUE" | "True") => Ok(true),
        Some("false" | "0" | "f" | "F" | "FALSE" | "False") => Ok(false),
        Some(other) => Err(Error::InvalidArgument(format!("{other:?} is not true or false"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args> {
        Args::parse(line.split_whitespace().map(String::from))
    }

    #[test]
    fn flags_come_in_any_order_and_spelling() {
        let one = parse("-namespace n -address /a -publish-binary /p -id i -debug start").unwrap();
        let two = parse("start --debug=true --id=i --publish-binary=/p -address=/a -namespace n");
        assert_eq!(one, two.unwrap());
        assert_eq!(one.action, Action::Start);
        assert!(one.debug);
    }

    #[test]
    fn what_is_unknown_or_dangerous_is_refused() {
        let lines =
            ["-x 1 start", "stop", "-namespace n -id ../x start", "-namespace n start", "-id", ""];
        for line in lines {
            let error = parse(line).unwrap_err();
            assert!(matches!(error, Error::InvalidArgument(_)), "{line}: {error}");
        }
    }

    #[test]
    fn questions_need_no_container() {
        assert_eq!(parse("-v").unwrap().action, Action::Version);
        assert_eq!(parse("--info").unwrap().action, Action::Info);
    }
}
