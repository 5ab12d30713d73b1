//! The unsafe part: one state of ISA-L behind a safe face.
#![allow(unsafe_code, reason = "ISA-L is a C library")]

use std::ffi::c_int;
use std::io;
use std::ptr::NonNull;

/// Where a decoder stands within one gzip member.
pub(super) struct State(NonNull<Opaque>);

/// `struct inflate_state`, whose layout only `inflate.c` knows.
#[repr(C)]
struct Opaque {
    _private: [u8; 0],
}

/// What one step did.
pub(super) struct Step {
    /// Bytes taken from the input.
    pub(super) used: usize,
    /// Bytes put into the output.
    pub(super) made: usize,
    /// Whether the member is over and its checksum right.
    pub(super) is_end: bool,
}

impl State {
    /// One at the start of a member.
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: takes nothing; gives a pointer that is ours to free, or null.
        let state = unsafe { crated_isal_new() };
        NonNull::new(state).map(Self).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    /// Goes back to the start of a member.
    pub(super) fn reset(&mut self) {
        // SAFETY: the pointer came from `crated_isal_new`, is not freed before `drop`, and is
        // borrowed mutably.
        unsafe { crated_isal_reset(self.0.as_ptr()) }
    }

    /// Decodes what it can of `input` into `output`.
    pub(super) fn step(&mut self, input: &[u8], output: &mut [u8]) -> io::Result<Step> {
        let mut used = u32::try_from(input.len()).unwrap_or(u32::MAX);
        let mut made = u32::try_from(output.len()).unwrap_or(u32::MAX);
        // SAFETY: the pointer as in `reset`. The library reads at most `used` bytes of `input` and
        // writes at most `made` of `output`, which are that long and do not overlap, and keeps
        // neither pointer for later: the next call sets both anew.
        let status = unsafe {
            crated_isal_step(
                self.0.as_ptr(),
                input.as_ptr(),
                &raw mut used,
                output.as_mut_ptr(),
                &raw mut made,
            )
        };
        let is_end = match status {
            0 => false,
            1 => true,
            _ => return Err(invalid(status)),
        };
        Ok(Step { used: used as usize, made: made as usize, is_end })
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // SAFETY: the pointer as in `reset`; nobody uses it afterwards.
        unsafe { crated_isal_free(self.0.as_ptr()) }
    }
}

// SAFETY: the state is plain memory that only its owner reaches; the library keeps nothing about
// it elsewhere.
unsafe impl Send for State {}

fn invalid(status: c_int) -> io::Error {
    let reason = match status {
        -1 => "invalid block",
        -2 => "invalid symbol",
        -3 => "invalid distance",
        -4 => "invalid gzip header",
        -5 => "unsupported compression method",
        -6 => "wrong checksum",
        _ => "cannot be decoded",
    };
    io::Error::new(io::ErrorKind::InvalidData, format!("gzip: {reason}"))
}

unsafe extern "C" {
    fn crated_isal_new() -> *mut Opaque;
    fn crated_isal_reset(state: *mut Opaque);
    fn crated_isal_free(state: *mut Opaque);
    fn crated_isal_step(
        state: *mut Opaque,
        input: *const u8,
        input_len: *mut u32,
        output: *mut u8,
        output_len: *mut u32,
    ) -> c_int;
}
