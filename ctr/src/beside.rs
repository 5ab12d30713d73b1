//! Reading and writing that may wait, on a thread beside the connection.
//!
//! The program has one thread for everything else: while it waited for a pipe, nobody would answer
//! the daemon.

use std::io::{self, Read, Write};

use tokio::task::{self, JoinError};

use crate::error::{Error, Result};

/// Something to read: a file, or standard input.
pub(crate) struct Source {
    inner: Option<Box<dyn Read + Send>>,
    name: String,
}

impl Source {
    /// Reads `inner`, which errors call `name`.
    pub(crate) fn new(inner: impl Read + Send + 'static, name: &str) -> Self {
        Self { inner: Some(Box::new(inner)), name: name.to_owned() }
    }

    /// The next bytes, at most `limit`; none at the end.
    pub(crate) async fn read(&mut self, limit: usize) -> Result<Vec<u8>> {
        let mut buffer = vec![0; limit];
        let count = run(&mut self.inner, &self.name, move |inner| {
            let count = inner.read(&mut buffer)?;
            buffer.truncate(count);
            Ok(buffer)
        });
        count.await.map_err(Error::io("read", &self.name))
    }

    /// Passes over `count` bytes; fewer are an error.
    pub(crate) async fn skip(&mut self, count: u64) -> Result<()> {
        let skipped = run(&mut self.inner, &self.name, move |inner| {
            match io::copy(&mut inner.take(count), &mut io::sink())? {
                passed if passed == count => Ok(()),
                passed => Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("it ends after {passed} bytes, and {count} are stored already"),
                )),
            }
        });
        skipped.await.map_err(Error::io("read", &self.name))
    }
}

/// Something to write: a file, or standard output.
pub(crate) struct Sink {
    inner: Option<Box<dyn Write + Send>>,
    name: String,
}

impl Sink {
    /// Writes `inner`, which errors call `name`.
    pub(crate) fn new(inner: impl Write + Send + 'static, name: &str) -> Self {
        Self { inner: Some(Box::new(inner)), name: name.to_owned() }
    }

    /// Writes all of `data`.
    pub(crate) async fn write(&mut self, data: Vec<u8>) -> Result<()> {
        let written = run(&mut self.inner, &self.name, move |inner| inner.write_all(&data));
        written.await.map_err(Error::io("write", &self.name))
    }

    /// Hands what is kept back to whoever gets it.
    pub(crate) async fn flush(&mut self) -> Result<()> {
        let flushed = run(&mut self.inner, &self.name, |inner| inner.flush());
        flushed.await.map_err(Error::io("write", &self.name))
    }
}

/// Lends `slot` to a thread for the time of `work`. A call that was given up keeps it.
async fn run<I: Send + 'static, T: Send + 'static>(
    slot: &mut Option<I>,
    name: &str,
    work: impl FnOnce(&mut I) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let mut inner = slot.take().ok_or_else(|| {
        io::Error::other(format!("{name} is still being used by an earlier call"))
    })?;
    let (inner, outcome) = task::spawn_blocking(move || {
        let outcome = work(&mut inner);
        (inner, outcome)
    })
    .await
    .map_err(|error: JoinError| io::Error::other(error))?;
    *slot = Some(inner);
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.expect("a runtime starts").block_on(work)
    }

    #[test]
    fn reads_to_the_end_on_the_runtime_that_the_program_has() {
        wait(async {
            let mut source = Source::new(&b"abcde"[..], "it");
            source.skip(1).await.expect("a byte is there");
            assert_eq!(source.read(2).await.expect("reads"), b"bc");
            assert_eq!(source.read(9).await.expect("reads"), b"de");
            assert_eq!(source.read(9).await.expect("reads"), b"");
        });
    }

    #[test]
    fn passing_over_more_than_is_there_says_how_much_there_was() {
        let error = wait(Source::new(&b"abc"[..], "it").skip(4)).expect_err("ends early");
        assert!(error.to_string().contains("ends after 3 bytes"), "{error}");
    }

    #[test]
    fn writes_everything_before_it_answers() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("out");
        wait(async {
            let file = std::fs::File::create(&path).expect("created");
            let mut sink = Sink::new(io::BufWriter::new(file), "it");
            sink.write(b"abc".to_vec()).await.expect("written");
            sink.flush().await.expect("flushed");
        });
        assert_eq!(std::fs::read(&path).expect("read"), b"abc");
    }
}
