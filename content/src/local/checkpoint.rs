//! The hash state of an unfinished ingest, kept beside its data, so that a resumed writer need not
//! hash from the first byte and knows how much of the data can be trusted.
//!
//! The file `checkpoint` holds four slots of 512 bytes. Slots 0 and 1 take turns every MiB and
//! are valid in the *epoch* they were written in: one boot and one mount, within which the kernel
//! answers for every completed write, also of a process that was killed. Slots 2 and 3 take turns
//! as the ingest grows, are written after the data they cover has been synced, and are valid
//! always. Which of the two is the parity of the sequence number. A
//! slot is written by one call and carries a checksum; the slot beside it still holds when one is
//! torn. Little-endian:
//!
//! ```text
//!   0  magic "crated.ckpt\1"       12 bytes, the last is the version
//!  12  algorithm                    1 byte, the index in Algorithm::ALL
//!  13  flags                        1 byte, bit 0: synced, bit 1: the file length is the progress
//!  14  state length                 2 bytes, 0 when the algorithm has no saved state
//!  16  sequence number              8 bytes, higher is newer
//!  24  offset in bytes              8 bytes
//!  32  epoch                       16 bytes
//!  48  hash state                  state length
//!  ..  blake3 of all the above     16 bytes
//! ```

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, StatxFlags};

use crate::{Algorithm, Hasher};

/// One slot, decoded.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoint {
    pub(crate) sequence: u64,
    /// How many bytes of the data file the state covers.
    pub(crate) offset: u64,
    pub(crate) synced: bool,
    /// Whether the length of the data file tells how far a killed writer came. Not so for direct
    /// I/O, which extends the file ahead of its writes.
    pub(crate) length_is_progress: bool,
    pub(crate) epoch: Epoch,
    pub(crate) algorithm: Algorithm,
    state: Vec<u8>,
}

/// One boot of the machine and one mount of the filesystem, as far as the kernel lets us tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Epoch([u8; 16]);

impl Epoch {
    /// The epoch of the filesystem `dir` is on.
    pub(crate) fn of(dir: impl AsFd) -> io::Result<Self> {
        let boot = std::fs::read("/proc/sys/kernel/random/boot_id")?;
        let wanted = StatxFlags::from_bits_retain(STATX_MNT_ID_UNIQUE | STATX_MNT_ID);
        let stat = rustix::fs::statx(dir, c"", AtFlags::EMPTY_PATH, wanted)?;
        let mut hash = blake3::Hasher::new();
        hash.update(&boot);
        hash.update(&stat.stx_mnt_id.to_le_bytes());
        Ok(Self(first_16(&hash)))
    }
}

impl Checkpoint {
    /// The state of `hasher`, which covers the first `hasher.size_bytes()` bytes of the data.
    pub(crate) fn of(hasher: &Hasher, length_is_progress: bool, epoch: Epoch) -> Self {
        Self {
            sequence: 0,
            offset: hasher.size_bytes(),
            synced: false,
            length_is_progress,
            epoch,
            algorithm: hasher.algorithm(),
            state: hasher.save().unwrap_or_default(),
        }
    }

    /// The hasher as it was, when `algorithm` is still the one wanted and its state can be saved.
    pub(crate) fn hasher(&self, algorithm: Algorithm) -> Option<Hasher> {
        if algorithm != self.algorithm || self.state.is_empty() {
            return None;
        }
        Hasher::restore(algorithm, &self.state, self.offset)
    }

    fn encode(&self) -> Vec<u8> {
        let algorithm = Algorithm::ALL.iter().position(|known| *known == self.algorithm);
        let flags = u8::from(self.synced) | u8::from(self.length_is_progress) << 1;
        let mut slot = Vec::with_capacity(SLOT_SIZE_BYTES);
        slot.extend_from_slice(MAGIC);
        slot.push(algorithm.expect("every algorithm is listed") as u8);
        slot.push(flags);
        slot.extend_from_slice(&(self.state.len() as u16).to_le_bytes());
        slot.extend_from_slice(&self.sequence.to_le_bytes());
        slot.extend_from_slice(&self.offset.to_le_bytes());
        slot.extend_from_slice(&self.epoch.0);
        slot.extend_from_slice(&self.state);
        let sum = first_16(blake3::Hasher::new().update(&slot));
        slot.extend_from_slice(&sum);
        debug_assert!(slot.len() <= SLOT_SIZE_BYTES);
        slot.resize(SLOT_SIZE_BYTES, 0);
        slot
    }

    /// Reads one slot; `None` for anything that was not written by this version, whole.
    pub(crate) fn decode(slot: &[u8]) -> Option<Self> {
        if slot.len() != SLOT_SIZE_BYTES || &slot[..12] != MAGIC {
            return None;
        }
        let algorithm = *Algorithm::ALL.get(usize::from(slot[12]))?;
        let state_len = usize::from(u16::from_le_bytes([slot[14], slot[15]]));
        let end = HEAD_SIZE_BYTES + state_len;
        let sum = slot.get(end..end + 16)?;
        if sum != first_16(blake3::Hasher::new().update(&slot[..end])) {
            return None;
        }
        let number = |at: usize| {
            let bytes: [u8; 8] = slot[at..at + 8].try_into().expect("eight bytes");
            u64::from_le_bytes(bytes)
        };
        let state = slot[HEAD_SIZE_BYTES..end].to_vec();
        let offset = number(24);
        if !state.is_empty() {
            Hasher::restore(algorithm, &state, offset)?;
        }
        Some(Self {
            sequence: number(16),
            offset,
            synced: slot[13] & 1 != 0,
            length_is_progress: slot[13] & 2 != 0,
            epoch: Epoch(slot[32..48].try_into().expect("sixteen bytes")),
            algorithm,
            state,
        })
    }
}

/// The open checkpoint file of a live writer.
#[derive(Debug)]
pub(crate) struct Slots {
    file: File,
    sequence: u64,
    /// The last of each kind.
    last: u64,
    last_synced: u64,
}

/// A slot on its way to the file.
#[derive(Debug)]
pub(crate) struct Prepared {
    file: File,
    at: u64,
    bytes: Vec<u8>,
    synced: bool,
}

impl Prepared {
    /// Writes it, and syncs it if it is one that counts after a power cut.
    pub(crate) fn write(&self) -> io::Result<()> {
        self.file.write_all_at(&self.bytes, self.at)?;
        if self.synced { self.file.sync_all() } else { Ok(()) }
    }
}

impl Slots {
    /// Continues after the newest of `known`.
    pub(crate) fn new(file: File, known: &[Checkpoint]) -> Self {
        let newest = |synced| {
            let of_kind = known.iter().filter(|slot| slot.synced == synced);
            of_kind.map(|slot| slot.sequence).max().unwrap_or(0)
        };
        let (last, last_synced) = (newest(false), newest(true));
        Self { file, sequence: last.max(last_synced), last, last_synced }
    }

    /// Writes the slot whose turn it is. When `synced` the caller has synced the data, and the slot
    /// is synced as well.
    pub(crate) fn write(&mut self, checkpoint: Checkpoint, synced: bool) -> io::Result<()> {
        self.prepare(checkpoint, synced)?.write()
    }

    /// The same, to be written later; by then it may no longer be the newest.
    pub(crate) fn prepare(
        &mut self,
        mut checkpoint: Checkpoint,
        synced: bool,
    ) -> io::Result<Prepared> {
        let last = if synced { &mut self.last_synced } else { &mut self.last };
        // The one after which the other of the two slots of this kind is due.
        self.sequence += if self.sequence % 2 == *last % 2 { 1 } else { 2 };
        *last = self.sequence;
        checkpoint.sequence = self.sequence;
        checkpoint.synced = synced;
        let index = self.sequence % 2 + if synced { 2 } else { 0 };
        let at = index * SLOT_SIZE_BYTES as u64;
        Ok(Prepared { file: self.file.try_clone()?, at, bytes: checkpoint.encode(), synced })
    }

    /// Makes every slot invalid, for a data file that starts over.
    pub(crate) fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)
    }
}

/// Every valid slot in the content of a checkpoint file.
pub(crate) fn decode(bytes: &[u8]) -> Vec<Checkpoint> {
    bytes.chunks_exact(SLOT_SIZE_BYTES).take(SLOTS).filter_map(Checkpoint::decode).collect()
}

/// The slot to resume from in `epoch`: the newest of this epoch, failing that the newest synced.
pub(crate) fn newest(slots: &[Checkpoint], epoch: Epoch) -> Option<&Checkpoint> {
    slots
        .iter()
        .filter(|slot| slot.epoch == epoch)
        .max_by_key(|slot| slot.sequence)
        .or_else(|| slots.iter().filter(|slot| slot.synced).max_by_key(|slot| slot.sequence))
}

fn first_16(hash: &blake3::Hasher) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finalize().as_bytes()[..16]);
    bytes
}

const MAGIC: &[u8; 12] = b"crated.ckpt\x01";
const HEAD_SIZE_BYTES: usize = 48;
const SLOT_SIZE_BYTES: usize = 512;
const SLOTS: usize = 4;
/// The longest file worth reading.
pub(crate) const FILE_SIZE_BYTES_MAX: u64 = (SLOT_SIZE_BYTES * SLOTS) as u64;

/// `stx_mnt_id` is asked for; kernels from 6.8 fill in the one that is never reused.
const STATX_MNT_ID: u32 = 0x1000;
const STATX_MNT_ID_UNIQUE: u32 = 0x4000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn checkpoint(algorithm: Algorithm, bytes: &[u8]) -> Checkpoint {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        Checkpoint::of(&hasher, true, Epoch([7; 16]))
    }

    proptest! {
        #[test]
        fn a_restored_hasher_continues_where_it_was_saved(
            head in proptest::collection::vec(any::<u8>(), 0..600),
            tail in proptest::collection::vec(any::<u8>(), 0..600),
            algorithm in proptest::sample::select(Algorithm::ALL.to_vec()),
        ) {
            let decoded = Checkpoint::decode(&checkpoint(algorithm, &head).encode()).unwrap();
            prop_assert_eq!(decoded.offset, head.len() as u64);
            let Some(mut hasher) = decoded.hasher(algorithm) else {
                prop_assert_eq!(algorithm, Algorithm::Blake3);
                return Ok(());
            };
            hasher.update(&tail);
            let whole = [head, tail].concat();
            prop_assert_eq!(hasher.digest(), crate::Digest::of_with(algorithm, &whole));
        }

        #[test]
        fn any_changed_byte_makes_a_slot_invalid(at in 0usize..150, flip in 1u8..) {
            let mut slot = checkpoint(Algorithm::Sha256, b"some bytes").encode();
            slot[at] ^= flip;
            prop_assert!(Checkpoint::decode(&slot).is_none());
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..2100),
        ) {
            decode(&bytes);
        }
    }

    #[test]
    fn slots_of_a_kind_take_turns_however_the_kinds_alternate() {
        let file = tempfile::tempfile().unwrap();
        let mut slots = Slots::new(file.try_clone().unwrap(), &[]);
        let mut last = [None; 2];
        for synced in [false, true, true, false, true, false, false, true, false, true] {
            let prepared = slots.prepare(checkpoint(Algorithm::Sha256, b""), synced).unwrap();
            let before = last[usize::from(synced)].replace(prepared.at);
            assert_ne!(before, Some(prepared.at));
            assert_eq!(prepared.at >= 2 * SLOT_SIZE_BYTES as u64, synced);
            prepared.write().unwrap();
        }
        let mut bytes = vec![0; FILE_SIZE_BYTES_MAX as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let known = decode(&bytes);
        let mut again = Slots::new(file, &known);
        let next = again.prepare(checkpoint(Algorithm::Sha256, b""), true).unwrap();
        assert_ne!(last[1], Some(next.at), "the newest synced slot is not overwritten");
        assert!(known.iter().all(|slot| slot.sequence < again.sequence));
    }

    #[test]
    fn another_epoch_falls_back_to_the_synced_slot() {
        let mut old = checkpoint(Algorithm::Sha256, b"synced");
        (old.sequence, old.synced) = (1, true);
        let mut new = checkpoint(Algorithm::Sha256, b"synced and more");
        new.sequence = 2;
        let slots = [old, new];
        assert_eq!(newest(&slots, Epoch([7; 16])).unwrap().sequence, 2);
        assert_eq!(newest(&slots, Epoch([8; 16])).unwrap().sequence, 1);
        assert!(newest(&slots[1..], Epoch([8; 16])).is_none());
    }
}
