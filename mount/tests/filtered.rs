//! A system call filter that knows nothing newer than mount(2), as old container
//! profiles have it. Needs root. One test, since the choice is made once.
#![allow(unsafe_code, reason = "no safe crate here installs a filter")]

mod support;

use std::fs;
use std::os::unix::fs::symlink;

use crated_mount::{Backend, Error, Mount, TempMount};
use support::{bind, dir, isolated, layer, mount, mounts_below, tmpfs};

#[test]
fn a_filter_against_the_new_calls_leads_to_the_classic_interface() {
    isolated(|root| {
        let source = layer(root, "source", "hello");
        let far = layer(root, "far", "world");
        let target = dir(root, "target/inner");
        symlink("inner", root.join("target/link")).unwrap();
        refuse_new_calls();

        assert_eq!(Backend::detect(), Backend::Classic);

        let lowerdir = format!("lowerdir={}:{}", source.display(), far.display());
        let mounts =
            [tmpfs(), bind(&source, &["rbind", "ro"]), mount("overlay", "overlay", &[&lowerdir])];
        let temp = TempMount::attach(&mounts, &dir(root, "temp")).unwrap();
        assert!(temp.path().join("hello").exists() && temp.path().join("world").exists());
        temp.close().unwrap();

        // Without openat2 a link in a target is refused, never followed.
        let inner = Mount { target: "inner".into(), ..bind(&source, &["bind"]) };
        inner.attach(&root.join("target")).unwrap();
        assert!(target.join("hello").exists());
        let through_link = Mount { target: "link".into(), ..inner };
        let error = through_link.attach(&root.join("target")).unwrap_err();
        assert!(matches!(error, Error::Refused(_)), "{error}");
        assert_eq!(mounts_below(&root.join("target")).len(), 1);

        // What only the new calls can do is an error, not something else done.
        let mapped = bind(&source, &["bind", "uidmap=0:1:9", "gidmap=0:1:9"]);
        let error = mapped.attach(&target).unwrap_err();
        assert!(matches!(error, Error::PermissionDenied(_)), "{error}");
        assert!(fs::read_dir(root.join("temp")).unwrap().next().is_none());
    });
}

/// Has this thread's calls of the newer interfaces answered with EPERM.
fn refuse_new_calls() {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let refused = [
        libc::SYS_fsopen,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_fspick,
        libc::SYS_open_tree,
        libc::SYS_move_mount,
        libc::SYS_mount_setattr,
        libc::SYS_openat2,
    ];
    let instruction = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // The number is the first field of what a filter sees.
    let mut program = vec![instruction(LOAD, 0, 0, 0)];
    for (index, call) in refused.iter().enumerate() {
        let to_refusal = (refused.len() - index) as u8;
        program.push(instruction(JUMP_IF_EQUAL, to_refusal, 0, *call as u32));
    }
    program.push(instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    program.push(instruction(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32));
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: `program` and the instructions it points to live through the call,
    // which copies them; only this thread is concerned.
    let result =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}
