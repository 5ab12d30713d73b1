//! The system calls no safe crate offers, each behind a safe face.
#![allow(unsafe_code, reason = "unshare, ioctls, SO_NETNS_COOKIE and ancillary data; see notes")]

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;

/// `NS_GET_NSTYPE` of `linux/nsfs.h`.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
/// Absent from libc for some targets; the same on all Linux ones but parisc
/// and sparc.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// Moves the calling thread into a new network namespace.
pub(crate) fn unshare_net() -> Result<(), Errno> {
    // SAFETY: `unshare_unsafe` is unsafe because CLONE_FILES would leave other
    // code holding descriptors of a table it no longer shares. Only CLONE_NEWNET
    // is passed, which touches neither descriptors nor memory.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
}

/// The `CLONE_NEW*` constant of the namespace `fd` is open on.
pub(crate) fn namespace_type(fd: impl AsFd) -> Result<i32, Errno> {
    // SAFETY: the descriptor is open for the call; NS_GET_NSTYPE takes no
    // argument and returns an integer.
    let kind = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), NS_GET_NSTYPE) };
    if kind < 0 { Err(last_errno()) } else { Ok(kind) }
}

/// The cookie of the network namespace `socket` was opened in; unique until
/// reboot.
pub(crate) fn netns_cookie(socket: impl AsFd) -> Result<u64, Errno> {
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` and `len` are live locals, and `len` is the size of
    // `cookie`, so the kernel writes within it.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if rc < 0 { Err(last_errno()) } else { Ok(cookie) }
}

/// One datagram with the namespace id the kernel tagged it with.
pub(crate) struct Tagged {
    /// Bytes of the datagram; more than the buffer's length if it was cut.
    pub(crate) len: usize,
    /// The id, absent for events of the socket's own namespace.
    pub(crate) nsid: Option<i32>,
}

/// Room for one `NETLINK_LISTEN_ALL_NSID` control message, aligned for one.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// Receives one datagram without waiting.
pub(crate) fn recv_tagged(socket: impl AsFd, buf: &mut [u8]) -> Result<Tagged, Errno> {
    let mut control = Control([0; 64]);
    let mut iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // SAFETY: msghdr is plain data for which all zeroes is a valid value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = control.0.len() as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header points at `buf` and `control`, both exclusively
    // borrowed or owned here for the call, with their true lengths.
    let len = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut header, flags) };
    if len < 0 {
        return Err(last_errno());
    }
    let mut nsid = None;
    // SAFETY: `header` was filled in by recvmsg and still points at `control`.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !message.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or a header that
        // lies whole within `control`, which is aligned for it.
        let found = unsafe { *message };
        if found.cmsg_level == libc::SOL_NETLINK && found.cmsg_type == libc::NETLINK_LISTEN_ALL_NSID
        {
            // SAFETY: the kernel puts one c_int behind a header of this type;
            // it may be unaligned, hence read_unaligned.
            nsid = Some(unsafe { libc::CMSG_DATA(message).cast::<i32>().read_unaligned() });
        }
        // SAFETY: as for CMSG_FIRSTHDR; `message` came from this header.
        message = unsafe { libc::CMSG_NXTHDR(&raw const header, message) };
    }
    Ok(Tagged { len: len as usize, nsid })
}

/// What a persistent tun or tap device is made with.
pub(crate) struct TunRequest<'a> {
    pub(crate) name: &'a str,
    pub(crate) flags: i16,
    pub(crate) owner: Option<u32>,
    pub(crate) group: Option<u32>,
}

/// Makes a tun or tap device of `tun` (an open `/dev/net/tun`) and lets it
/// outlive the descriptor.
pub(crate) fn tun_persist(tun: impl AsFd, request: &TunRequest<'_>) -> Result<(), Errno> {
    // SAFETY: ifreq is plain data for which all zeroes is a valid value.
    let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = ifreq.ifr_name.len() - 1;
    for (to, from) in ifreq.ifr_name.iter_mut().zip(request.name.bytes().take(room)) {
        *to = from as libc::c_char;
    }
    ifreq.ifr_ifru.ifru_flags = request.flags;
    let fd = tun.as_fd().as_raw_fd();
    // SAFETY: TUNSETIFF reads and writes one ifreq, a live local.
    check(unsafe { libc::ioctl(fd, libc::TUNSETIFF, &raw mut ifreq) })?;
    if let Some(owner) = request.owner {
        // SAFETY: TUNSETOWNER takes an integer argument.
        check(unsafe { libc::ioctl(fd, libc::TUNSETOWNER, libc::c_ulong::from(owner)) })?;
    }
    if let Some(group) = request.group {
        // SAFETY: TUNSETGROUP takes an integer argument.
        check(unsafe { libc::ioctl(fd, libc::TUNSETGROUP, libc::c_ulong::from(group)) })?;
    }
    // SAFETY: TUNSETPERSIST takes an integer argument.
    check(unsafe { libc::ioctl(fd, libc::TUNSETPERSIST, 1 as libc::c_ulong) })
}

fn check(rc: libc::c_int) -> Result<(), Errno> {
    if rc < 0 { Err(last_errno()) } else { Ok(()) }
}

fn last_errno() -> Errno {
    let code = std::io::Error::last_os_error().raw_os_error();
    Errno::from_raw_os_error(code.unwrap_or(libc::EIO))
}
