//! Text files become documents, documents become sequences of one exact length.
//!
//! A row of attention is one byte. Documents are laid end to end; where a sequence is full its last document is cut,
//! and the next sequence starts with the next document. A small corpus is read again from its start.
use std::fs::File;
use std::io::Read;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use crate::files::walk;

/// A file is text if its first bytes are: this many are looked at.
const SNIFFED: usize = 8192;

/// Why there is nothing to run on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CorpusError {
    /// The folder is not there, or a file stands in its place.
    #[error("corpus {} is not a folder; name a folder with text files", .0.display())]
    NotAFolder(PathBuf),
    /// No text in any file.
    #[error("corpus {} has no text: {files} files looked at, none holds UTF-8 text", folder.display())]
    Empty {
        /// Folder that was searched.
        folder: PathBuf,
        /// Files that were looked at.
        files: usize,
    },
    /// The operating system refused.
    #[error("corpus: cannot read {}: {source}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// Its reason.
        source: std::io::Error,
    },
}

/// Documents in a fixed order, none empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Corpus {
    /// Bytes of each document.
    pub documents: Vec<Vec<u8>>,
}

/// One sequence of the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sequence {
    /// One byte per row.
    pub bytes: Vec<u8>,
    /// Rows of each document, in order; their sum is `bytes.len()`.
    pub document_lengths: Vec<usize>,
}

/// How much text to take, and in what pieces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packing {
    /// Sequences.
    pub batch: NonZeroUsize,
    /// Rows of each sequence.
    pub seq_len: NonZeroUsize,
    /// Largest document in bytes.
    pub max_document: NonZeroUsize,
}

/// Reads the text files of `folder` and packs them.
///
/// # Errors
/// [`CorpusError`], with the folder or file.
pub(crate) fn load(folder: &Path, packing: Packing) -> Result<Vec<Sequence>, CorpusError> {
    Ok(read(folder, packing)?.pack(packing))
}

/// Reads text files in sorted order until there is enough for the whole batch.
fn read(folder: &Path, packing: Packing) -> Result<Corpus, CorpusError> {
    if !folder.is_dir() {
        return Err(CorpusError::NotAFolder(folder.to_owned()));
    }
    let files = walk(folder).map_err(|source| CorpusError::Io { path: folder.to_owned(), source })?;
    // Each sequence may cut its last document, so `batch` documents more than the plain total are enough.
    let rows = packing.seq_len.get().saturating_add(packing.max_document.get());
    let mut wanted = packing.batch.get().saturating_mul(rows);
    let mut documents = Vec::new();
    for file in &files {
        let path = folder.join(file);
        let text = read_text(&path, wanted).map_err(|source| CorpusError::Io { path, source })?;
        wanted -= text.len();
        documents.extend(sections(&text, packing.max_document).map(<[u8]>::to_vec));
        if wanted == 0 {
            break;
        }
    }
    if documents.is_empty() {
        return Err(CorpusError::Empty { folder: folder.to_owned(), files: files.len() });
    }
    Ok(Corpus { documents })
}

impl Corpus {
    /// Fills every sequence exactly.
    fn pack(&self, packing: Packing) -> Vec<Sequence> {
        let mut documents = self.documents.iter().cycle();
        let rows = packing.seq_len.get();
        (0..packing.batch.get())
            .map(|_| {
                let mut sequence = Sequence { bytes: Vec::with_capacity(rows), document_lengths: Vec::new() };
                while sequence.bytes.len() < rows
                    && let Some(document) = documents.next()
                {
                    let length = document.len().min(rows - sequence.bytes.len());
                    sequence.bytes.extend_from_slice(&document[..length]);
                    sequence.document_lengths.push(length);
                }
                sequence
            })
            .collect()
    }
}

/// At most `limit` bytes of a text file; nothing of a binary one.
fn read_text(path: &Path, limit: usize) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut text = Vec::new();
    file.by_ref().take(SNIFFED as u64).read_to_end(&mut text)?;
    if !is_text(&text) {
        return Ok(Vec::new());
    }
    let rest = limit.saturating_sub(text.len());
    file.take(rest as u64).read_to_end(&mut text)?;
    text.truncate(limit);
    Ok(text)
}

fn is_text(start: &[u8]) -> bool {
    let valid = match std::str::from_utf8(start) {
        Ok(_) => true,
        // The last character may be cut off by the end of what we read.
        Err(error) => error.error_len().is_none(),
    };
    valid && !start.contains(&0)
}

/// Cuts a text into pieces of at most `max` bytes: before a heading if one lies in the second half of the piece,
/// else after the last blank line, else wherever the limit falls.
fn sections(text: &[u8], max: NonZeroUsize) -> impl Iterator<Item = &[u8]> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (section, after) = rest.split_at(section_length(rest, max.get()));
        rest = after;
        Some(section)
    })
}

fn section_length(text: &[u8], max: usize) -> usize {
    if text.len() <= max {
        return text.len();
    }
    // A line may start right at the limit, so that the section before it is full.
    let starts = (1..=max).rev().filter(|&at| text[at - 1] == b'\n');
    let after_blank = |at: usize| at >= 2 && text[at - 2] == b'\n';
    let heading = starts.clone().take_while(|&at| at > max / 2).find(|&at| is_heading(&text[at..]));
    heading.or_else(|| starts.clone().find(|&at| after_blank(at))).unwrap_or(max)
}

/// A Markdown heading: one or more `#` and a blank.
fn is_heading(line: &[u8]) -> bool {
    let marks = line.iter().take_while(|&&byte| byte == b'#').count();
    marks > 0 && line.get(marks) == Some(&b' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(value: usize) -> NonZeroUsize {
        NonZeroUsize::new(value).unwrap()
    }

    fn packing(batch: usize, rows: usize, max_document: usize) -> Packing {
        Packing { batch: size(batch), seq_len: size(rows), max_document: size(max_document) }
    }

    fn cut(text: &str, max: usize) -> Vec<&str> {
        sections(text.as_bytes(), size(max)).map(|piece| std::str::from_utf8(piece).unwrap()).collect()
    }

    #[test]
    fn sections_end_at_headings_then_blank_lines_then_anywhere() {
        assert_eq!(cut("short\n", 8), ["short\n"]);
        assert_eq!(cut("aaa\n# b\n\ncc\n", 7), ["aaa\n", "# b\n\n", "cc\n"]);
        assert_eq!(cut("a\n\nb\n\ncccc\n", 7), ["a\n\nb\n\n", "cccc\n"]);
        assert_eq!(cut("abcdefg", 3), ["abc", "def", "g"]);
        assert_eq!(cut("#x\n#y\nzz", 6), ["#x\n#y\n", "zz"], "an attribute is no heading");
    }

    #[test]
    fn nothing_is_lost_and_no_section_is_too_long() {
        let text = "# one\n\ntwo three\nfour\n\n\nfive\n## six\nseven".repeat(7);
        for max in 1..80 {
            let pieces = cut(&text, max);
            assert_eq!(pieces.concat(), text);
            assert!(pieces.iter().all(|piece| !piece.is_empty() && piece.len() <= max));
        }
    }

    #[test]
    fn sequences_are_full_and_only_their_last_document_is_cut() {
        let corpus = Corpus { documents: vec![b"aaa".to_vec(), b"bb".to_vec(), b"cccc".to_vec()] };
        let packed = corpus.pack(packing(2, 7, 4));
        assert_eq!(packed[0], Sequence { bytes: b"aaabbcc".to_vec(), document_lengths: vec![3, 2, 2] });
        assert_eq!(packed[1], Sequence { bytes: b"aaabbcc".to_vec(), document_lengths: vec![3, 2, 2] });
        let packed = corpus.pack(packing(2, 4, 4));
        assert_eq!(packed[1], Sequence { bytes: b"cccc".to_vec(), document_lengths: vec![4] });
    }

    #[test]
    fn binary_and_empty_files_do_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
        write("a.bin", b"a\0b");
        write("b.bin", &[0xff, 0xfe, 0x41]);
        write("c.txt", b"");
        let error = load(folder.path(), packing(1, 8, 4)).unwrap_err();
        assert!(matches!(error, CorpusError::Empty { files: 3, .. }), "{error}");
        write("d.txt", "grün\n".as_bytes());
        let packed = load(folder.path(), packing(1, 8, 4)).unwrap();
        assert_eq!((packed[0].bytes.len(), packed[0].document_lengths.as_slice()), (8, &[4, 2, 2][..]));
    }

    #[test]
    fn a_long_file_is_read_only_as_far_as_needed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("long.txt"), "word ".repeat(100_000)).unwrap();
        let corpus = read(folder.path(), packing(2, 10_000, 500)).unwrap();
        assert_eq!(corpus.documents.iter().map(Vec::len).sum::<usize>(), 2 * 10_500);
    }

    #[test]
    fn a_missing_folder_and_a_file_in_its_place_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        for path in [folder.path().join("absent"), file] {
            let error = load(&path, packing(1, 8, 4)).unwrap_err();
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
    }
}
