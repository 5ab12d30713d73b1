//! Programs that decide which images may be pulled: plugin `io.containerd.image-verifier.v1.bindir`.
//!
//! Every program in a directory is asked, in the order of names, before anything of an image but
//! its descriptor is fetched:
//!
//! ```text
//! <bin_dir>/<program> -name <reference> -digest <digest> -stdin-media-type <type of the input>
//! stdin   the descriptor as JSON
//! exit 0  accepted; anything else is a rejection, whose reason stands on stdout
//! ```

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

use crated_api::types::Descriptor;

use super::run::{self, Failure, Limits};
use crate::config::ImageVerifier;

/// The programs of one directory.
#[derive(Clone, Debug)]
pub struct Verifiers {
    settings: ImageVerifier,
}

/// Why an image must not be pulled.
#[allow(missing_docs, reason = "each variant's doc covers its fields")]
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Rejection {
    /// A verifier said no, for `reason`.
    #[error("image verifier {verifier} rejected {image:?} (exit code {code}): {reason}")]
    Rejected { verifier: String, image: String, code: i32, reason: String },
    /// A verifier could not be asked. Repair or remove it: images are not pulled unverified.
    #[error("image verifier {verifier} for {image:?}")]
    Failed { verifier: String, image: String, source: Failure },
    /// The directory cannot be read.
    #[error("image verifiers in {}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
}

impl Verifiers {
    /// The programs that `settings` name. They are looked up for each image anew.
    pub fn new(settings: ImageVerifier) -> Self {
        Self { settings }
    }

    /// Asks every verifier about the image called `name`. Without verifiers every image is good.
    ///
    /// Blocks for as long as they take.
    ///
    /// # Errors
    ///
    /// [`Rejection`], of the first that does not accept.
    pub fn verify(&self, name: &str, target: &Descriptor) -> Result<(), Rejection> {
        let programs = self.programs()?;
        let max = usize::try_from(self.settings.max_verifiers).unwrap_or(usize::MAX);
        if programs.len() > max {
            let (asked, present) = (max, programs.len());
            tracing::warn!(asked, present, "more image verifiers than max_verifiers");
        }
        programs.iter().take(max).try_for_each(|program| self.ask(program, name, target))
    }

    fn programs(&self) -> Result<Vec<PathBuf>, Rejection> {
        let path = &self.settings.bin_dir;
        let failed = |source| Rejection::Unreadable { path: path.clone(), source };
        let entries = match fs::read_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut programs = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            if !path.is_dir() {
                programs.push(path);
            }
        }
        programs.sort();
        Ok(programs)
    }

    fn ask(&self, program: &Path, name: &str, target: &Descriptor) -> Result<(), Rejection> {
        let (verifier, image) = (run::name(program), name.to_owned());
        let mut command = Command::new(program);
        command
            .args(["-name", name, "-digest", &target.digest])
            .args(["-stdin-media-type", INPUT_MEDIA_TYPE]);
        let limits =
            Limits { time: self.settings.per_verifier_timeout.0, output_bytes: OUTPUT_BYTES_MAX };
        let output = match run::run(&mut command, &json(target), limits) {
            Ok(output) => output,
            Err(source) => return Err(Rejection::Failed { verifier, image, source }),
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let (reason, complaint) = (text(&output.stdout), text(&output.stderr));
        if !complaint.is_empty() {
            tracing::debug!(verifier, image, complaint, "image verifier");
        }
        match output.code {
            0 => Ok(()),
            code => Err(Rejection::Rejected { verifier, image, code, reason }),
        }
    }
}

/// The descriptor in the form of image documents.
fn json(target: &Descriptor) -> Vec<u8> {
    let mut fields = serde_json::json!({
        "mediaType": target.media_type,
        "digest": target.digest,
        "size": target.size,
    });
    if !target.annotations.is_empty() {
        fields["annotations"] = serde_json::json!(target.annotations);
    }
    fields.to_string().into_bytes()
}

const INPUT_MEDIA_TYPE: &str = "application/vnd.oci.descriptor.v1+json";

/// Bytes of a reason that are kept.
const OUTPUT_BYTES_MAX: usize = 32 << 10;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use super::*;
    use crate::config::Span;

    fn install(directory: &Path, name: &str, script: &str) {
        let path = directory.join(name);
        // Written elsewhere first: a program that is open for writing cannot be run.
        let draft = directory.with_extension("draft");
        fs::write(&draft, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&draft, &path).unwrap();
    }

    fn verifiers(directory: &Path, max: i64) -> Verifiers {
        Verifiers::new(ImageVerifier {
            bin_dir: directory.to_path_buf(),
            max_verifiers: max,
            per_verifier_timeout: Span(Duration::from_secs(60)),
        })
    }

    fn target() -> Descriptor {
        Descriptor {
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            digest: "sha256:abc".into(),
            size: 7,
            ..Descriptor::default()
        }
    }

    /// Asks until the kernel lets the script run: another test of this process may have been
    /// forking while it was open for writing.
    fn verify(verifiers: &Verifiers, name: &str) -> Result<(), Rejection> {
        loop {
            match verifiers.verify(name, &target()) {
                Err(Rejection::Failed { source: Failure::Io { source, .. }, .. })
                    if source.kind() == io::ErrorKind::ExecutableFileBusy => {}
                verified => return verified,
            }
        }
    }

    #[test]
    fn every_verifier_must_accept() {
        let directory = tempfile::tempdir().unwrap();
        let bin = directory.path().join("bin");
        fs::create_dir(&bin).unwrap();
        install(&bin, "10-type", r#"[ "$6" = application/vnd.oci.descriptor.v1+json ]"#);
        install(&bin, "20-input", r#"grep -q '"digest":"sha256:abc"'"#);
        install(&bin, "30-name", r#"[ "$2" != evil ] || { echo "not this one"; exit 4; }"#);
        let asked = verifiers(&bin, 10);
        verify(&asked, "good").unwrap();
        let rejection = verify(&asked, "evil").unwrap_err();
        let text = rejection.to_string();
        assert!(text.contains("30-name") && text.contains("(exit code 4): not this one"), "{text}");
        verify(&verifiers(&bin, 2), "evil").expect("the third is not asked");
        verify(&verifiers(&bin, -1), "evil").unwrap_err();
    }

    #[test]
    fn a_directory_that_is_not_there_holds_no_verifier() {
        verifiers(Path::new("/nowhere/at/all"), 10).verify("x", &target()).unwrap();
    }

    #[test]
    fn a_verifier_that_cannot_run_accepts_nothing() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("text"), "no program").unwrap();
        let rejection = verify(&verifiers(directory.path(), 10), "x").unwrap_err();
        assert!(matches!(rejection, Rejection::Failed { .. }), "{rejection}");
    }
}
