//! Worlds whose ranks share a GPU, one at a time on a machine.
//!
//! For such ranks NVSHMEM 3.4.5 keeps a segment of shared memory whose name says no more than which of its ranks is the first
//! on that GPU (`/dev/shm/mps_shm_0`): the segment of another such world is taken for its own, and one that the other
//! has just removed ends the process ("Failed to open shared memory slab", seen on one H200). So rank 0 holds a lock
//! from before the start until all ranks have ended NVSHMEM. Ranks with a GPU each need no lock and take none.
use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::time::Duration;

use super::apart::Apart;
use super::block::Block;
use super::driver::Named;

use crate::deadline::{Deadline, poll_until};
use crate::{Error, Pe};

/// Every such world of the machine locks this file; nobody removes it.
const FILE: &str = "symm-buffer-shared-gpu.lock";

/// For the other ranks to come out of NVSHMEM, when this one is out.
const LAST_MOMENT: Duration = Duration::from_secs(5);

/// This world is the one whose ranks share a GPU.
#[derive(Debug)]
pub(super) struct Turn {
    /// Locked as long as it is open; rank 0 has it.
    _lock: Option<File>,
}

/// Tells all ranks which device this one has, and waits for this world's turn if two have the same. Collective.
///
/// # Errors
/// [`Error::SharedFile`] when another world does not end in time or the file cannot be used, [`Error::Lost`],
/// [`Error::Missing`]; [`Error::Driver`].
pub(super) fn claim(
    call: &'static str,
    apart: &Apart,
    (block, folder): (&Block, &Path),
    deadline: Deadline,
) -> Result<Option<Turn>, Error> {
    let uuid = apart.context.uuid().named("cuDeviceGetUuid")?.bytes.map(i8::cast_unsigned);
    let mine: [u64; 2] = bytemuck::cast(uuid);
    block.write_note(apart.me, 0, [mine[0], mine[1], 0, 0, 0, 0]);
    apart.meet(call, block, deadline)?;
    let devices: Vec<_> = block.sizes().world.ranks().map(|pe| block.read_note(pe, 0)).collect();
    if !any_twice(&devices) {
        return Ok(None);
    }
    let lock = (apart.me == Pe(0)).then(|| lock(call, &folder.join(FILE), deadline)).transpose()?;
    // Nobody starts before rank 0 has it.
    apart.meet(call, block, deadline)?;
    Ok(Some(Turn { _lock: lock }))
}

impl Turn {
    /// Ends when all ranks have come here, or after some seconds. Collective, after the end of NVSHMEM.
    pub(super) fn end(self, call: &'static str, apart: &Apart, block: &Block) {
        // Ranks that do not come are gone, and take no segment any more.
        _ = apart.meet(call, block, Deadline::after(LAST_MOMENT));
    }
}

fn any_twice<T: PartialEq>(all: &[T]) -> bool {
    all.iter().enumerate().any(|(at, one)| all[..at].contains(one))
}

fn lock(call: &'static str, path: &Path, deadline: Deadline) -> Result<File, Error> {
    let failed = |reason| Error::SharedFile { call, file: path.display().to_string(), reason };
    // Another user's file can be locked too, but not written.
    let file = OpenOptions::new().read(true).open(path);
    let file =
        file.or_else(|_| OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path));
    let file = file.map_err(|error| failed(format!("open: {error}")))?;
    let poll = || match file.try_lock() {
        Ok(()) => Some(Ok(())),
        Err(TryLockError::WouldBlock) => None,
        Err(TryLockError::Error(error)) => Some(Err(failed(format!("lock: {error}")))),
    };
    match poll_until(deadline, poll) {
        Ok(waited) => waited.value.map(|()| file),
        Err(expired) => Err(failed(format!(
            "another job whose ranks share a GPU has it since {:.1?}; wait for its end, or give each rank a GPU",
            expired.waited
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::thread;

    #[test]
    fn who_comes_second_waits_and_says_for_what() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let after = |millis| Deadline::after(Duration::from_millis(millis));
        let first = lock("test", &path, after(0)).unwrap();
        let error = lock("test", &path, after(30)).unwrap_err();
        assert!(error.to_string().contains("another job whose ranks share a GPU"), "{error}");
        thread::scope(|scope| {
            let second = scope.spawn(|| lock("test", &path, after(20_000)).unwrap());
            thread::sleep(Duration::from_millis(30));
            assert!(!second.is_finished());
            drop(first);
            second.join().unwrap();
        });
    }

    #[test]
    fn only_equal_devices_are_shared() {
        assert!(!any_twice::<u8>(&[]) && !any_twice(&[1, 2, 3]));
        assert!(any_twice(&[1, 2, 1]) && any_twice(&[4, 4]));
    }
}
