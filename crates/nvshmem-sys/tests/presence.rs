//! What a caller sees, on a machine with the library and on one without.
use nvshmem_sys::{Error, Search, Version, is_present, load};

#[test]
fn presence_and_load_agree_and_repeat() {
    assert_eq!(is_present(), load(&Search::system()).is_ok());
    assert_eq!(is_present(), is_present());
    match load(&Search::system()) {
        Ok(nvshmem) => {
            let version = nvshmem.version();
            assert!(version >= Version::HEADERS, "{version}");
            assert!(nvshmem.spec_version().major >= 1);
            assert!(!nvshmem.name().is_empty());
        }
        Err(Error::NotFound { attempts }) => assert_eq!(attempts.len(), nvshmem_sys::CANDIDATES.len()),
        Err(other) => panic!("a library is there but not usable: {other}"),
    }
}

#[test]
fn versions_order_and_print_as_people_write_them() {
    assert_eq!(Version::HEADERS.to_string(), "3.4.5");
    assert!(Version { major: 3, minor: 10, patch: 0 } > Version::HEADERS);
}
