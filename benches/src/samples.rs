use std::io;
use std::path::Path;
use std::time::Duration;

use crate::volume::Volume;

/// Times of one operation, one for each repetition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Samples {
    sorted: Vec<Duration>,
}

impl FromIterator<Duration> for Samples {
    fn from_iter<T: IntoIterator<Item = Duration>>(times: T) -> Self {
        let mut sorted: Vec<Duration> = times.into_iter().collect();
        sorted.sort_unstable();
        Self { sorted }
    }
}

impl Samples {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.sorted.len()
    }

    /// The time that `percent` of the repetitions did not exceed.
    ///
    /// # Panics
    ///
    /// Without samples.
    pub fn percentile(&self, percent: usize) -> Duration {
        assert!(!self.sorted.is_empty(), "a percentile needs samples");
        let rank = (self.sorted.len() * percent).div_ceil(100);
        self.sorted[rank.clamp(1, self.sorted.len()) - 1]
    }

    /// The middle time.
    ///
    /// # Panics
    ///
    /// Without samples.
    pub fn median(&self) -> Duration {
        self.percentile(50)
    }
}

/// One line of results: an operation and its times.
#[derive(Clone, Debug)]
pub struct Row {
    /// The operation.
    pub name: String,
    /// Its times.
    pub samples: Samples,
}

/// A quotient of two times, named as in `budgets.toml`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// The name of its budget.
    pub name: &'static str,
    /// The quotient.
    pub value: f64,
}

/// What measuring one hop yields.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// The times.
    pub rows: Vec<Row>,
    /// The quotients made from them.
    pub ratios: Vec<Ratio>,
}

impl Measured {
    pub(crate) fn rows(&mut self, names: &[&'static str], samples: Vec<Samples>) -> Vec<Duration> {
        let medians = samples.iter().map(Samples::median).collect();
        let rows = names.iter().zip(samples);
        self.rows.extend(rows.map(|(name, samples)| Row { name: (*name).to_owned(), samples }));
        medians
    }

    pub(crate) fn ratio(&mut self, name: &'static str, over: Duration, under: Duration) {
        self.ratios.push(Ratio { name, value: over.as_secs_f64() / under.as_secs_f64() });
    }
}

/// One of several ways to do the same, timed by itself so that preparations do not count.
///
/// It is given an empty directory on the volume and leaves nothing there open.
pub type Contender<'a> = Box<dyn FnMut(&Path) -> io::Result<Duration> + 'a>;

/// Runs all contenders in every round, in turning order, each on a volume fresh from mounting.
///
/// Whatever slows the machine for a while slows all of them. A first round is not counted: it
/// pays for memory and code that the others find in place.
///
/// # Errors
///
/// The first of a contender or the volume.
pub fn interleave(
    volume: &mut Volume,
    rounds: usize,
    contenders: &mut [Contender<'_>],
) -> io::Result<Vec<Samples>> {
    let count = contenders.len();
    let mut times = vec![Vec::with_capacity(rounds); count];
    for round in 0..=rounds {
        for turn in 0..count {
            let index = (round + turn) % count;
            volume.refresh()?;
            let directory = volume.directory()?;
            let time = contenders[index](&directory)?;
            if round > 0 {
                times[index].push(time);
            }
        }
    }
    Ok(times.into_iter().map(Samples::from_iter).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_taken() {
        let samples: Samples = (1..=200).rev().map(Duration::from_millis).collect();

        assert_eq!(samples.median(), Duration::from_millis(100));
        assert_eq!(samples.percentile(99), Duration::from_millis(198));
        assert_eq!(samples.percentile(100), Duration::from_millis(200));
        let one: Samples = [Duration::from_millis(7)].into_iter().collect();
        assert_eq!((one.percentile(0), one.percentile(99)), (one.median(), one.median()));
    }
}
