//! How processes find each other's block, and how they notice that one is gone.
//!
//! Files lie in a folder in memory (`/dev/shm`) and their names go as soon as everybody has them open. Each rank holds
//! a lock on a file of its own; the system drops it when the process ends, however it ends. A child that was forked
//! without `exec` keeps its parent's lock: then only deadlines notice.
use std::fs::{File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::block::{At, Block, MOST_RANKS, Sizes};
use crate::deadline::{Deadline, poll_until};
use crate::sync::Ordering;
use crate::{Error, Pe};

const CALL: &str = "join";

/// Where a group's files are.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// A folder in memory that all ranks see.
    pub(super) folder: PathBuf,
    /// A name that no other group has.
    pub(super) name: String,
}

/// Why a file could not be used.
#[derive(Clone, Debug)]
pub(super) enum Failed {
    /// A call of the system.
    Io(&'static str, String),
    /// Its content.
    Other(String),
}

impl Failed {
    pub(super) fn io(call: &'static str, error: &std::io::Error) -> Self {
        Self::Io(call, error.to_string())
    }

    fn at(self, file: &Path) -> Error {
        let reason = match self {
            Self::Io(call, text) => format!("{call}: {text}"),
            Self::Other(text) => text,
        };
        Error::SharedFile { call: CALL, file: file.display().to_string(), reason }
    }
}

/// Locks that tell who lives.
#[derive(Debug)]
pub(super) struct Vigil {
    /// Locked as long as it is open.
    _mine: File,
    peers: Vec<(Pe, File)>,
}

impl Vigil {
    /// Peers whose processes are gone.
    pub(super) fn dead(&self) -> impl Iterator<Item = Pe> {
        self.peers.iter().filter(|(_, file)| is_free(file)).map(|(pe, _)| *pe)
    }
}

/// Whether nobody holds the lock. Who looks at the same time takes a shared lock too, so two who look do not take each
/// other for the owner.
fn is_free(file: &File) -> bool {
    match file.try_lock_shared() {
        Ok(()) => {
            // Closing the file would end it too.
            _ = file.unlock();
            true
        }
        Err(TryLockError::WouldBlock | TryLockError::Error(_)) => false,
    }
}

/// Files that are removed when this is dropped.
struct Names(Vec<PathBuf>);

impl Drop for Names {
    fn drop(&mut self) {
        for name in &self.0 {
            // Somebody else may have removed it.
            _ = std::fs::remove_file(name);
        }
    }
}

/// Makes (rank 0) or opens the block, and waits for all others. Collective.
///
/// # Errors
/// [`Error::SharedFile`], [`Error::TooManyRanks`]; [`Error::Missing`] naming a rank that did not come.
pub(super) fn join(me: Pe, sizes: Sizes, place: &Place, deadline: Duration) -> Result<(Block, Vigil), Error> {
    let deadline = Deadline::after(deadline);
    let ranks = sizes.world.size();
    if ranks > MOST_RANKS {
        return Err(Error::TooManyRanks { call: CALL, ranks, most: MOST_RANKS });
    }
    let mut names = Names(Vec::new());
    let path = |suffix: &str| place.folder.join(format!("{}{suffix}", place.name));
    let mine = make(&path(&format!("-{}", me.0)), &mut names)?;
    mine.lock().map_err(|error| Failed::io("lock", &error).at(&path("")))?;
    let block = match me {
        Pe(0) => {
            // The name appears when the content is there.
            let (new, named) = (path(".new"), path(""));
            let block = Block::create(&make(&new, &mut names)?, sizes).map_err(|why| why.at(&new))?;
            names.0.push(named.clone());
            std::fs::rename(&new, &named).map_err(|error| Failed::io("rename", &error).at(&named))?;
            block
        }
        _ => open_block(me, sizes, &path(""), deadline)?,
    };
    come(&block, 0, me, deadline)?;
    let open = |pe: Pe| {
        let path = path(&format!("-{}", pe.0));
        let file = File::open(&path).map_err(|error| Failed::io("open", &error).at(&path))?;
        Ok((pe, file))
    };
    let peers = sizes.world.after(me).map(open).collect::<Result<_, Error>>()?;
    come(&block, 1, me, deadline)?;
    Ok((block, Vigil { _mine: mine, peers }))
}

fn make(path: &Path, names: &mut Names) -> Result<File, Error> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
    let file = file.map_err(|error| Failed::io("create", &error).at(path))?;
    names.0.push(path.to_owned());
    Ok(file)
}

fn open_block(me: Pe, sizes: Sizes, path: &Path, deadline: Deadline) -> Result<Block, Error> {
    let poll = || match OpenOptions::new().read(true).write(true).open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        opened => Some(opened),
    };
    let missing = |expired: crate::deadline::Expired| {
        let waited = expired.waited;
        Error::Missing { call: CALL, me, missing: Pe(0), waited }
    };
    let file = poll_until(deadline, poll).map_err(missing)?.value;
    let file = file.map_err(|error| Failed::io("open", &error).at(path))?;
    Block::open(&file, sizes).map_err(|why| why.at(path))
}

/// Sets my bit and waits for those of all others.
fn come(block: &Block, phase: usize, me: Pe, deadline: Deadline) -> Result<(), Error> {
    let (word, world) = (block.word(At::Joined(phase)), block.sizes().world);
    word.fetch_or(1 << me.0, Ordering::AcqRel);
    let absent = || world.ranks().find(|pe| word.load(Ordering::Acquire) & (1 << pe.0) == 0);
    match poll_until(deadline, || absent().is_none().then_some(())) {
        Ok(_) => Ok(()),
        Err(expired) => {
            let missing = absent().unwrap_or(me);
            Err(Error::Missing { call: CALL, me, missing, waited: expired.waited })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::World;
    use crate::sync::thread;

    const LONG: Duration = Duration::from_secs(20);

    fn place(folder: &Path) -> Place {
        Place { folder: folder.to_owned(), name: "group".to_owned() }
    }

    fn join_all(
        folder: &Path,
        ranks: u32,
        come: u32,
        deadline: Duration,
    ) -> Vec<Result<(Block, Vigil), Error>> {
        let sizes = Sizes { world: World::new(ranks).unwrap(), signals: 4 };
        let place = place(folder);
        thread::scope(|scope| {
            let start = |me| {
                let place = &place;
                scope.spawn(move || join(Pe(me), sizes, place, deadline))
            };
            let threads: Vec<_> = (0..come).rev().map(start).collect();
            threads.into_iter().rev().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn all_see_one_block_no_name_is_left_and_a_dropped_lock_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let mut joined: Vec<_> =
            join_all(folder.path(), 3, 3, LONG).into_iter().map(|joined| joined.unwrap()).collect();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let word = At::Signal(Pe(2), crate::SignalId(3));
        joined[0].0.word(word).store(77, Ordering::Release);
        assert!(joined.iter().all(|(block, _)| block.word(word).load(Ordering::Acquire) == 77));
        assert!(joined.iter().all(|(_, vigil)| vigil.dead().next().is_none()));
        drop(joined.remove(1));
        assert!(joined.iter().all(|(_, vigil)| vigil.dead().eq([Pe(1)])));
    }

    #[test]
    fn who_does_not_come_is_named_and_no_name_is_left() {
        let folder = tempfile::tempdir().unwrap();
        for joined in join_all(folder.path(), 3, 2, Duration::from_millis(100)) {
            let error = joined.err().unwrap();
            assert!(matches!(error, Error::Missing { missing: Pe(2), .. }), "{error}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn another_groups_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("group"), [0; 100]).unwrap();
        let sizes = Sizes { world: World::new(2).unwrap(), signals: 4 };
        let error = join(Pe(1), sizes, &place(folder.path()), LONG).err().unwrap();
        assert!(matches!(error, Error::SharedFile { .. }), "{error}");
        assert!(
            join(Pe(0), Sizes { world: World::new(65).unwrap(), ..sizes }, &place(folder.path()), LONG)
                .is_err()
        );
    }
}
