//! Pages from the operating system: anonymous ones, and files that live in memory only.
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::ptr;

use rustix::fs::MemfdFlags;
use rustix::mm::{Advice, MapFlags, ProtFlags};

/// Bytes of a page on x86-64 and, by default, on aarch64.
pub(crate) const PAGE: usize = 4096;

/// New zeroed pages; the system finds room for them only as they are touched.
pub(crate) fn anonymous(bytes: usize) -> io::Result<usize> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: without a wish for an address the system chooses one that nothing else uses.
    let address = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), bytes, read_and_write(), flags) }?;
    Ok(address as usize)
}

/// Maps a file so that all who do share its bytes.
pub(crate) fn shared(file: impl AsFd, bytes: usize) -> io::Result<usize> {
    let flags = MapFlags::SHARED | MapFlags::NORESERVE;
    // SAFETY: without a wish for an address the system chooses one that nothing else uses.
    let address = unsafe { rustix::mm::mmap(ptr::null_mut(), bytes, read_and_write(), flags, file, 0) }?;
    Ok(address as usize)
}

/// A file of zeros without a name in any folder: it ends with the last process that has it open or mapped.
pub(crate) fn memory_file(name: &str, bytes: usize) -> io::Result<File> {
    let file = File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.set_len(bytes as u64)?;
    Ok(file)
}

/// Gives the pages of anonymous memory back and keeps the addresses: later reads find zeros, and nothing crashes.
pub(crate) fn discard(address: usize, bytes: usize) {
    // SAFETY: the range is one that `anonymous` gave; what was in it is no longer wanted.
    let given = unsafe { rustix::mm::madvise(address as *mut _, bytes, Advice::LinuxDontNeed) };
    // The pages stay then, which costs memory only.
    _ = given;
}

/// Ends a mapping of [`shared`].
pub(crate) fn unmap(address: usize, bytes: usize) {
    // SAFETY: the range is one that `shared` gave, and its owner says that nothing uses it any more.
    let ended = unsafe { rustix::mm::munmap(address as *mut _, bytes) };
    // It stays then, which costs addresses only.
    _ = ended;
}

fn read_and_write() -> ProtFlags {
    ProtFlags::READ | ProtFlags::WRITE
}
