//! Where the library may lie. Nothing here reads the environment: whoever does passes values in.
use std::path::{Path, PathBuf};

/// File names that are tried, in this order. The first is the soname of NVSHMEM 3, the second the developer's link.
pub const CANDIDATES: [&str; 2] = ["libnvshmem_host.so.3", "libnvshmem_host.so"];

/// Folders in which the library is looked for, in the order in which they were given; then, if wanted, wherever the
/// dynamic loader looks for bare names (`LD_LIBRARY_PATH`, the system's folders).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Search {
    folders: Vec<PathBuf>,
    system: bool,
}

impl Search {
    /// The dynamic loader's own path only.
    pub fn system() -> Self {
        Self { folders: Vec::new(), system: true }
    }

    /// One folder only, for example `site-packages/nvidia/nvshmem/lib`.
    pub fn only(folder: impl Into<PathBuf>) -> Self {
        Self { folders: vec![folder.into()], system: false }
    }

    /// What the usual variables say, by `lookup` of their values: `NVSHMEM_HOME` first, then the Python environments
    /// `VIRTUAL_ENV` and `CONDA_PREFIX`, then the folders of `PYTHONPATH`, then the system.
    pub fn from_variables(lookup: impl Fn(&'static str) -> Option<String>) -> Self {
        let set = |name| lookup(name).filter(|value| !value.is_empty());
        let mut search = Self::system();
        if let Some(home) = set("NVSHMEM_HOME") {
            search = search.home(home);
        }
        for prefix in ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(&set) {
            search = search.python_prefix(prefix);
        }
        let path = set("PYTHONPATH").unwrap_or_default();
        path.split(':').filter(|folder| !folder.is_empty()).fold(search, Self::site_packages)
    }

    /// Also looks in this folder.
    #[must_use]
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folders.push(folder.into());
        self
    }

    /// Also looks in an installation of its own, as `NVSHMEM_HOME` names it: its `lib` and `lib64`.
    #[must_use]
    pub fn home(self, home: impl AsRef<Path>) -> Self {
        ["lib", "lib64"].iter().fold(self, |search, lib| search.folder(home.as_ref().join(lib)))
    }

    /// Also looks where the wheels `nvidia-nvshmem-cu12` and `nvidia-nvshmem-cu13` put it in a folder of packages.
    #[must_use]
    pub fn site_packages(self, packages: impl AsRef<Path>) -> Self {
        self.folder(packages.as_ref().join("nvidia/nvshmem/lib"))
    }

    /// Also looks in the packages of a Python environment: `PREFIX/lib/python3.*/site-packages`.
    #[must_use]
    pub fn python_prefix(self, prefix: impl AsRef<Path>) -> Self {
        let Ok(entries) = std::fs::read_dir(prefix.as_ref().join("lib")) else { return self };
        let python = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3"))
        };
        let mut folders: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(python).collect();
        folders.sort();
        folders.iter().fold(self, |search, folder| search.site_packages(folder.join("site-packages")))
    }

    /// Files to try, in this order.
    pub fn files(&self) -> Vec<PathBuf> {
        let inside = self.folders.iter().flat_map(|folder| CANDIDATES.map(|name| folder.join(name)));
        let bare = CANDIDATES.into_iter().filter(|_| self.system).map(PathBuf::from);
        inside.chain(bare).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(search: &Search) -> Vec<String> {
        search.files().iter().map(|file| file.display().to_string()).collect()
    }

    #[test]
    fn files_come_in_the_order_of_the_folders_and_the_system_last() {
        let bare = CANDIDATES.map(str::to_owned);
        assert_eq!(texts(&Search::system()), bare);
        assert_eq!(texts(&Search::only("a")), CANDIDATES.map(|name| format!("a/{name}")));
        assert!(Search::default().files().is_empty());
        let files = texts(&Search::system().folder("a").home("b").site_packages("c"));
        let folders = ["a", "b/lib", "b/lib64", "c/nvidia/nvshmem/lib"];
        let inside = folders.iter().flat_map(|folder| CANDIDATES.map(|name| format!("{folder}/{name}")));
        assert_eq!(files, inside.chain(bare).collect::<Vec<_>>());
    }

    #[test]
    fn variables_become_folders_and_empty_ones_do_not() {
        let prefix = tempfile::tempdir().unwrap();
        for folder in ["lib/python3.12", "lib/python3.9", "lib/other"] {
            std::fs::create_dir_all(prefix.path().join(folder)).unwrap();
        }
        let prefix = prefix.path();
        let search = Search::from_variables(|name| match name {
            "NVSHMEM_HOME" => Some("h".to_owned()),
            "VIRTUAL_ENV" => Some(prefix.display().to_string()),
            "CONDA_PREFIX" => Some(String::new()),
            "PYTHONPATH" => Some("p::q".to_owned()),
            other => panic!("{other}"),
        });
        let packages = |version: &str| prefix.join("lib").join(version).join("site-packages");
        let wanted = Search::system().home("h").site_packages(packages("python3.12"));
        let wanted = wanted.site_packages(packages("python3.9")).site_packages("p").site_packages("q");
        assert_eq!(search, wanted);
        assert_eq!(Search::from_variables(|_| None), Search::system());
    }
}
