//! The real library of the wheel that `cargo xtask bindgen` unpacks under `target/`, if it is there. It needs no CUDA
//! to be loaded, to be asked for its version, and to let ranks meet.
use std::path::Path;

use nvshmem_sys::{Error, Nvshmem, Search, Seat, Status, UniqueId, Version, load};

/// The library, or one loud line.
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn library() -> Option<Nvshmem> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    let wheels = std::fs::read_dir(target).ok()?.flatten();
    let mut packages =
        wheels.filter(|entry| entry.file_name().to_string_lossy().starts_with("bindgen-wheels-"));
    let Some(packages) = packages.next() else {
        eprintln!("!!! SKIPPED: no NVSHMEM wheel under target/; `cargo xtask bindgen` fetches it");
        return None;
    };
    Some(
        load(&Search::default().site_packages(packages.path()))
            .expect("the wheel's library has all functions"),
    )
}

#[test]
fn the_library_has_all_functions_and_is_of_the_headers_version() {
    let Some(nvshmem) = library() else { return };
    assert_eq!(nvshmem.version(), Version::HEADERS);
    assert_eq!(nvshmem.name(), format!("NVSHMEM v{}", Version::HEADERS));
    assert_eq!((nvshmem.spec_version().major, nvshmem.spec_version().minor), (1, 3));
    assert_eq!(nvshmem.check_device(Version::HEADERS), Ok(()));
    let other = Version { patch: 4, ..Version::HEADERS };
    let error = nvshmem.check_device(other).unwrap_err();
    assert!(matches!(error, Error::DeviceVersion { device, host: Version::HEADERS, .. } if device == other));
}

#[test]
fn unique_ids_differ_and_wrong_ranks_are_refused_before_the_library_sees_them() {
    let Some(nvshmem) = library() else { return };
    let ids = [(); 2].map(|()| nvshmem.unique_id().expect("some interface is up"));
    assert_ne!(ids[0], ids[1]);
    assert_eq!(UniqueId::from_bytes(ids[0].bytes()), Ok(ids[0]));
    assert_eq!(nvshmem.status(), Status::NotInitialized);
    for (pe, world) in [(0, 0), (2, 2), (u32::MAX, 4), (0, u32::MAX)] {
        // SAFETY: it is refused before any rank is waited for.
        let error = unsafe { nvshmem.init(Seat { pe, world }, &ids[0]) }.unwrap_err();
        assert!(matches!(error, Error::NoSuchPe { .. }), "{error}");
    }
    assert_eq!(nvshmem.status(), Status::NotInitialized);
}
