//! The promised ratios, and whether they are met.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::samples::Ratio;

/// What is promised of one ratio.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// What is compared, in words.
    pub says: String,
    /// The ratio may not be greater.
    pub at_most: Option<f64>,
    /// The ratio may not be smaller.
    pub at_least: Option<f64>,
}

/// The promises by name, from `budgets.toml` as of this build.
///
/// # Panics
///
/// When that file is malformed, which a test excludes.
pub fn promised() -> BTreeMap<String, Budget> {
    toml::from_str(include_str!("../budgets.toml")).expect("budgets.toml is checked by a test")
}

impl Budget {
    /// Whether a measured ratio keeps the promise.
    pub fn is_met(&self, ratio: Ratio) -> bool {
        self.at_most.is_none_or(|bound| ratio.value <= bound)
            && self.at_least.is_none_or(|bound| ratio.value >= bound)
    }

    /// The bound as text.
    pub fn bound(&self) -> String {
        let most = self.at_most.map(|bound| format!("<= {bound:.2}"));
        let least = self.at_least.map(|bound| format!(">= {bound:.2}"));
        most.into_iter().chain(least).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_promise_has_words_and_one_bound() {
        for (name, budget) in promised() {
            assert!(!budget.says.is_empty(), "{name}");
            assert!(budget.at_most.is_some() != budget.at_least.is_some(), "{name}");
        }
    }

    #[test]
    fn a_bound_itself_keeps_the_promise() {
        let budget = |at_most, at_least| Budget { says: String::new(), at_most, at_least };
        let ratio = |value| Ratio { name: "a", value };

        assert!(budget(Some(1.15), None).is_met(ratio(1.15)));
        assert!(!budget(Some(1.15), None).is_met(ratio(1.16)));
        assert!(budget(None, Some(2.0)).is_met(ratio(2.0)));
        assert!(!budget(None, Some(2.0)).is_met(ratio(1.99)));
        assert!(!budget(Some(1.0), None).is_met(ratio(f64::NAN)));
    }
}
