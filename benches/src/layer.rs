//! Layers made up, the same in every run.

use std::fs::File;
use std::io::{self, Seek, Write};

use crated_snapshot::{Compression, Encoder};
use rustix::fs::MemfdFlags;
use tar::{Builder, EntryType, Header};

use crate::noise::Noise;

/// A layer in memory, as a file that programs can read as well.
#[derive(Debug)]
pub struct Layer {
    file: File,
    compression: Compression,
}

impl Layer {
    /// A layer like the root of a small Debian: nine directories of ten below `usr`, links beside
    /// the files, most files small and most bytes in large ones. `size_bytes` is what the files
    /// hold together; gzip halves it.
    ///
    /// # Errors
    ///
    /// When there is no memory for it.
    pub fn debian_like(size_bytes: u64, compression: Compression) -> io::Result<Self> {
        Self::make(compression, |tar| {
            let mut noise = Noise::new(1);
            let mut left_bytes = size_bytes;
            let mut directory = String::new();
            for number in 0_u64.. {
                if left_bytes == 0 {
                    break;
                }
                if number % FILES_PER_DIRECTORY == 0 {
                    directory = directory_name(number / FILES_PER_DIRECTORY);
                    append(tar, &directory, EntryType::Directory, 0o755, &[])?;
                }
                let size = (file_size(&mut noise)).min(left_bytes);
                left_bytes -= size;
                let name = format!("{directory}file-{number}");
                let mode = if noise.below(6) == 0 { 0o755 } else { 0o644 };
                append(tar, &name, EntryType::Regular, mode, &half_words(&mut noise, size))?;
                if number % FILES_PER_LINK == 0 {
                    let mut header = header(EntryType::Symlink, 0o777, 0);
                    let to = format!("file-{number}");
                    tar.append_link(&mut header, format!("{name}.so"), to)?;
                }
            }
            Ok(())
        })
    }

    /// A layer of `count` files of up to 4 KiB, a hundred to a directory, like the modules of an
    /// interpreter.
    ///
    /// # Errors
    ///
    /// When there is no memory for it.
    pub fn small_files(count: usize) -> io::Result<Self> {
        Self::make(Compression::None, |tar| {
            let mut noise = Noise::new(2);
            for number in 0..count {
                let directory = format!("modules/package-{}/", number / 100);
                if number % 100 == 0 {
                    append(tar, &directory, EntryType::Directory, 0o755, &[])?;
                }
                let size = 256 + noise.below(3840);
                let name = format!("{directory}module-{number}");
                let bytes = half_words(&mut noise, size);
                append(tar, &name, EntryType::Regular, 0o644, &bytes)?;
            }
            Ok(())
        })
    }

    /// How it is compressed.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// The layer, from its start. All files handed out share one position.
    ///
    /// # Errors
    ///
    /// When no file descriptor is left.
    pub fn open(&self) -> io::Result<File> {
        let mut file = self.file.try_clone()?;
        file.rewind()?;
        Ok(file)
    }

    /// Its length as stored, in bytes.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn make(
        compression: Compression,
        fill: impl FnOnce(&mut Builder<Encoder<io::BufWriter<File>>>) -> io::Result<()>,
    ) -> io::Result<Self> {
        let file = File::from(rustix::fs::memfd_create("layer", MemfdFlags::CLOEXEC)?);
        let writer = io::BufWriter::with_capacity(1 << 20, file.try_clone()?);
        let mut tar = Builder::new(compression.encoder(writer)?);
        fill(&mut tar)?;
        tar.into_inner()?.finish()?.flush()?;
        Ok(Self { file, compression })
    }
}

fn append<W: Write>(
    tar: &mut Builder<W>,
    name: &str,
    kind: EntryType,
    mode: u32,
    bytes: &[u8],
) -> io::Result<()> {
    tar.append_data(&mut header(kind, mode, bytes.len() as u64), name, bytes)
}

fn header(kind: EntryType, mode: u32, size_bytes: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size_bytes);
    header.set_mtime(1_700_000_000);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// Every tenth one lies at the top, the others below it.
fn directory_name(number: u64) -> String {
    match number % 10 {
        0 => format!("usr/share-{}/", number / 10),
        below => format!("usr/share-{}/part-{below}/", number / 10),
    }
}

/// Between 64 bytes and 180 KiB, each doubling as likely as the next; one in two hundred is a
/// library of up to 5 MB. 35 KB on average, as in the image of Debian.
fn file_size(noise: &mut Noise) -> u64 {
    if noise.below(200) == 0 {
        return 100_000 + noise.below(4_900_000);
    }
    let doublings = noise.below(1150) as f64 / 100.0;
    (64.0 * doublings.exp2()) as u64
}

/// As compressible as what images hold: pieces of noise among repeated words.
fn half_words(noise: &mut Noise, size_bytes: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(size_bytes).expect("files fit into memory")];
    for piece in bytes.chunks_mut(512) {
        if noise.below(2) == 0 {
            noise.fill(piece);
            continue;
        }
        for word in piece.chunks_mut(8) {
            let chosen = WORDS[noise.below(WORDS.len() as u64) as usize];
            word.copy_from_slice(&chosen[..word.len()]);
        }
    }
    bytes
}

const FILES_PER_DIRECTORY: u64 = 8;
const FILES_PER_LINK: u64 = 9;

const WORDS: [&[u8; 8]; 8] = [
    b"library ",
    b"default ",
    b"package ",
    b"version ",
    b"control ",
    b"include ",
    b"section ",
    b"process ",
];

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn bytes(layer: &Layer) -> Vec<u8> {
        let mut bytes = Vec::new();
        layer.open().unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn layers_are_the_same_in_every_run() {
        let [one, other] =
            [(); 2].map(|()| bytes(&Layer::debian_like(500_000, Compression::None).unwrap()));
        assert!(one == other);
        let [one, other] = [(); 2].map(|()| bytes(&Layer::small_files(150).unwrap()));
        assert!(one == other);
    }

    #[test]
    fn a_root_holds_the_bytes_asked_for_and_halves_in_gzip() {
        let plain = Layer::debian_like(6_000_000, Compression::None).unwrap();
        let gzip = Layer::debian_like(6_000_000, Compression::Gzip).unwrap();
        let stored = bytes(&plain);
        let mut archive = tar::Archive::new(stored.as_slice());
        let sizes = archive.entries().unwrap().map(|entry| entry.unwrap().size());
        assert_eq!(sizes.sum::<u64>(), 6_000_000);

        let part = gzip.size_bytes().unwrap() as f64 / plain.size_bytes().unwrap() as f64;
        assert!((0.4..0.7).contains(&part), "{part}");
    }

    #[test]
    fn small_files_are_as_many_as_asked_for() {
        let stored = bytes(&Layer::small_files(250).unwrap());
        let mut archive = tar::Archive::new(stored.as_slice());
        let files = archive.entries().unwrap().filter(|entry| {
            entry.as_ref().is_ok_and(|entry| entry.header().entry_type().is_file())
        });
        assert_eq!(files.count(), 250);
    }
}
