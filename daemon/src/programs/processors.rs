//! Programs that turn a layer of one media type into another: `[stream_processors]`.
//!
//! ```text
//! [stream_processors."io.example.decrypt"]
//!   accepts = ["application/vnd.oci.image.layer.v1.tar+encrypted"]
//!   returns = "application/vnd.oci.image.layer.v1.tar"
//!   path = "decrypt"
//!   args = ["--key", "/etc/key"]
//!
//! stdin   the layer as it is stored        env STREAM_PROCESSOR_MEDIATYPE=<its media type>
//! stdout  the layer as it is applied       fd 3, if the request has a payload for the program's
//!                                          name: the payload, an encoded google.protobuf.Any
//! ```
//!
//! Several may follow each other, until a media type is reached that can be applied.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{ChildStdout, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crated_api::Any;
use prost::Message;
use rustix::event::{PollFd, PollFlags};

use super::run::{self, Running};
use crate::config::StreamProcessor;

/// The configured programs, by name.
#[derive(Clone, Debug, Default)]
pub struct Processors {
    programs: BTreeMap<String, StreamProcessor>,
}

/// A media type that no chain of programs turns into a layer.
#[derive(Debug, thiserror::Error)]
#[error("no processor for media-type: {0}")]
pub struct Unprocessable(String);

impl Processors {
    /// The programs of the configuration.
    pub fn new(programs: BTreeMap<String, StreamProcessor>) -> Self {
        Self { programs }
    }

    /// The programs that turn `media_type` into a layer, in order; none when it is one already.
    ///
    /// # Errors
    ///
    /// [`Unprocessable`] when there are none, or more than a few would be needed.
    pub fn route(&self, media_type: &str) -> Result<Vec<Step>, Unprocessable> {
        let mut steps = Vec::new();
        let mut current = media_type.to_owned();
        while !is_layer(&current) {
            let accepting =
                |(_, program): &(&String, &StreamProcessor)| program.accepts.contains(&current);
            let Some((name, program)) = self.programs.iter().find(accepting) else {
                return Err(Unprocessable(media_type.to_owned()));
            };
            if steps.len() == STEPS_MAX {
                return Err(Unprocessable(media_type.to_owned()));
            }
            let returned = program.returns.clone();
            let input = std::mem::replace(&mut current, returned);
            steps.push(Step { name: name.clone(), program: program.clone(), input });
        }
        Ok(steps)
    }
}

/// One program of a chain.
#[derive(Clone, Debug)]
pub struct Step {
    name: String,
    program: StreamProcessor,
    /// The media type it is given.
    input: String,
}

/// A layer on its way through programs. Reads as what the last one prints; its end is an error
/// unless every program ended well.
///
/// Dropping it ends the programs.
#[derive(Debug)]
pub struct Processed {
    output: ChildStdout,
    running: Vec<(String, Running, Complaint)>,
    /// Carries the layer to the first program.
    feeding: Option<JoinHandle<io::Result<u64>>>,
    /// How the programs ended, once they have.
    ended: Option<Result<(), String>>,
    stall: Duration,
}

type Complaint = JoinHandle<Vec<u8>>;

impl Processed {
    /// Starts the programs of `steps`, of which there is at least one, on `layer`.
    ///
    /// # Errors
    ///
    /// When a program cannot be started; those before it are ended.
    pub fn start(
        steps: &[Step],
        payloads: &BTreeMap<String, Any>,
        layer: impl Read + Send + 'static,
    ) -> io::Result<Self> {
        let mut running = Vec::new();
        let mut input = None;
        let mut layer = Some(layer);
        let mut feeding = None;
        for step in steps {
            let stdin = input.take().map_or_else(Stdio::piped, Stdio::from);
            let mut child = step.start(payloads.get(&step.name), stdin).map_err(|error| {
                let program = step.program.path.display();
                io::Error::new(error.kind(), format!("stream processor {program}: start: {error}"))
            })?;
            if let (Some(mut stdin), Some(mut layer)) = (child.stdin.take(), layer.take()) {
                feeding = Some(std::thread::spawn(move || io::copy(&mut layer, &mut stdin)));
            }
            input = child.stdout.take();
            let complaint = listen(child.stderr.take());
            running.push((step.name.clone(), Running(child), complaint));
        }
        let output = input.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self { output, running, feeding, ended: None, stall: STALL_MAX })
    }

    /// How the programs ended; their output has.
    fn outcome(&mut self) -> Result<(), String> {
        let mut outcome = Ok(());
        for (name, running, complaint) in self.running.drain(..) {
            let code = match running.ended(self.stall) {
                Ok(Some(status)) => run::code(status),
                Ok(None) => {
                    return Err(format!("stream processor {name}: does not end"));
                }
                Err(error) => return Err(format!("stream processor {name}: {error}")),
            };
            if code != 0 && outcome.is_ok() {
                let complaint = complaint.join().unwrap_or_default();
                let complaint = String::from_utf8_lossy(&complaint).trim().to_owned();
                outcome = Err(format!("stream processor {name}: exit code {code}: {complaint}"));
            }
        }
        if let Some(feeding) = self.feeding.take()
            && outcome.is_ok()
            && let Ok(Err(error)) = feeding.join()
            // A program may know that it needs no more.
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            outcome = Err(format!("read layer: {error}"));
        }
        outcome
    }
}

impl Read for Processed {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.ended.is_none() {
            let mut fds = [PollFd::new(&self.output, PollFlags::IN)];
            if !run::wait_for(&mut fds, Instant::now() + self.stall)? {
                let text = format!("stream processors printed nothing for {:?}", self.stall);
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            match self.output.read(buf)? {
                0 if !buf.is_empty() => {
                    let outcome = self.outcome();
                    self.ended = Some(outcome);
                }
                read => return Ok(read),
            }
        }
        match &self.ended {
            Some(Err(reason)) => Err(io::Error::other(reason.clone())),
            _ => Ok(0),
        }
    }
}

impl Step {
    fn start(&self, payload: Option<&Any>, stdin: Stdio) -> io::Result<std::process::Child> {
        let mut command = Command::new(&self.program.path);
        command
            .args(&self.program.args)
            .envs(self.program.env.iter().filter_map(|pair| pair.split_once('=')))
            .env("STREAM_PROCESSOR_MEDIATYPE", &self.input)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        if let Some(payload) = payload {
            let file = run::sealed(&payload.encode_to_vec())?;
            crated_exec::sys::pass_fds(&mut command, vec![file]);
        }
        command.spawn()
    }
}

/// Keeps the beginning of what a program complains about, and lets it go on.
fn listen(stderr: Option<std::process::ChildStderr>) -> Complaint {
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        if let Some(mut stderr) = stderr {
            // Whatever cannot be read is no complaint.
            let _ = (&mut stderr).take(COMPLAINT_BYTES_MAX).read_to_end(&mut kept);
            let _ = io::copy(&mut stderr, &mut io::sink());
        }
        kept
    })
}

/// Whether the applier unpacks blobs of this type. What compression they have their bytes tell:
/// the suffixes of Docker's types are not to be trusted.
pub fn is_layer(media_type: &str) -> bool {
    let media_type = media_type.split(';').next().unwrap_or_default();
    let (base, suffix) = match media_type.strip_prefix(DOCKER_PREFIX) {
        Some(rest) => {
            let rest = rest.strip_prefix("foreign.").unwrap_or(rest);
            let rest = rest.strip_prefix("diff.tar").or_else(|| rest.strip_prefix("tar"));
            (rest.is_some(), rest.unwrap_or_default().trim_start_matches('.'))
        }
        None => {
            let rest = media_type
                .strip_prefix(OCI_PREFIX)
                .map(|rest| rest.strip_prefix("nondistributable.").unwrap_or(rest));
            let rest = rest.and_then(|rest| rest.strip_prefix("v1.tar"));
            (rest.is_some(), rest.unwrap_or_default().trim_start_matches('+'))
        }
    };
    base && ["", "gzip", "zstd"].contains(&suffix)
}

const DOCKER_PREFIX: &str = "application/vnd.docker.image.rootfs.";
const OCI_PREFIX: &str = "application/vnd.oci.image.layer.";

/// Programs one layer may pass through: more is a loop in the configuration.
const STEPS_MAX: usize = 8;

/// How long programs may work without printing anything.
const STALL_MAX: Duration = Duration::from_secs(300);

/// Bytes of a complaint that are kept.
const COMPLAINT_BYTES_MAX: u64 = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

    fn shell(accepts: &str, returns: &str, script: &str) -> StreamProcessor {
        StreamProcessor {
            accepts: vec![accepts.to_owned()],
            returns: returns.to_owned(),
            path: "/bin/sh".into(),
            args: vec!["-c".to_owned(), script.to_owned()],
            env: vec!["GREETING=hi".to_owned()],
        }
    }

    fn processors(programs: &[(&str, StreamProcessor)]) -> Processors {
        let programs = programs.iter().cloned();
        Processors::new(programs.map(|(name, program)| (name.to_owned(), program)).collect())
    }

    fn read(processors: &Processors, media_type: &str, layer: &[u8]) -> io::Result<Vec<u8>> {
        let steps = processors.route(media_type).unwrap();
        let payloads = [("b".to_owned(), Any { type_url: "key".into(), value: vec![] })].into();
        let layer = io::Cursor::new(layer.to_vec());
        let mut output = Vec::new();
        Processed::start(&steps, &payloads, layer)?.read_to_end(&mut output)?;
        Ok(output)
    }

    #[test]
    fn a_layer_passes_through_all_programs_of_its_route() {
        let programs = processors(&[
            ("a", shell("x/a", "x/b", "tr a b; printf $STREAM_PROCESSOR_MEDIATYPE")),
            ("b", shell("x/b", LAYER, "tr b c; printf ' %s ' $GREETING; cat <&3 | wc -c")),
        ]);
        assert!(programs.route(LAYER).unwrap().is_empty());
        let output = read(&programs, "x/a", b"aaa").unwrap();
        // An Any with a type of three letters takes five bytes.
        assert_eq!(String::from_utf8(output).unwrap(), "cccx/a hi 5\n");
    }

    #[test]
    fn more_than_a_pipe_holds_passes() {
        let programs = processors(&[("a", shell("x/a", LAYER, "cat"))]);
        let layer = vec![7; 3 << 20];
        assert_eq!(read(&programs, "x/a", &layer).unwrap(), layer);
    }

    #[test]
    fn a_program_that_fails_breaks_the_layer_in_its_words() {
        let programs = processors(&[("a", shell("x/a", LAYER, "cat; echo wrong key >&2; exit 2"))]);
        let error = read(&programs, "x/a", b"abc").unwrap_err();
        assert_eq!(error.to_string(), "stream processor a: exit code 2: wrong key");
    }

    #[test]
    fn routes_that_lead_nowhere_are_refused() {
        let programs =
            processors(&[("a", shell("x/a", "x/b", "cat")), ("b", shell("x/b", "x/a", "cat"))]);
        for media_type in ["x/a", "x/c", ""] {
            let error = programs.route(media_type).unwrap_err();
            assert!(error.to_string().starts_with("no processor for media-type"), "{error}");
        }
    }

    #[test]
    fn layers_are_known_by_their_media_type() {
        for known in [
            "application/vnd.docker.image.rootfs.diff.tar",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.docker.image.rootfs.diff.tar.zstd",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        ] {
            assert!(is_layer(known), "{known}");
        }
        for other in [
            "",
            "application/json",
            "application/vnd.oci.image.layer.v1.tar+encrypted",
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            "application/vnd.oci.image.config.v1+json",
        ] {
            assert!(!is_layer(other), "{other}");
        }
    }
}
