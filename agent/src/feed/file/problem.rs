//! What is wrong with a mesh file, or with the manifests that it names, and where: file, line, column and field.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_saphyr::Location;

use super::schema::Text;
pub(super) use crate::mesh::Place;

/// How many problems an error prints; the rest are counted.
const PRINTED_PROBLEMS: usize = 50;

/// Everything that is wrong with a mesh file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshFileError {
    /// The file.
    pub source: PathBuf,
    /// At least one, in the order of the file's sections.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, where it is another than the mesh file.
    pub file: Option<Arc<Path>>,
    /// From 1; 0 where the file has no such place.
    pub line: u64,
    /// From 1; 0 where the file has no such place, or where nobody knows.
    pub column: u64,
    /// For example `workloads[3].addresses[0]`, or the object of a manifest; empty for the file as a whole.
    pub field: String,
    /// What is wrong, and how to mend it.
    pub message: String,
}

impl std::error::Error for MeshFileError {}

impl fmt::Display for MeshFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().take(PRINTED_PROBLEMS).enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            problem.fmt_in(&self.source, f)?;
        }
        match self.problems.len().checked_sub(PRINTED_PROBLEMS) {
            None | Some(0) => Ok(()),
            Some(more) => write!(f, "\n{}: and {more} more", self.source.display()),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => self.fmt_in(file, f),
            None => write!(f, "line {}: {}: {}", self.line, self.field, self.message),
        }
    }
}

impl Problem {
    fn new(at: Location, place: &Place<'_>, message: impl Into<String>) -> Self {
        Self {
            file: None,
            line: at.line(),
            column: at.column(),
            field: place.to_string(),
            message: message.into(),
        }
    }

    fn fmt_in(&self, source: &Path, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = self.file.as_deref().unwrap_or(source);
        write!(f, "{}:", source.display())?;
        if self.line > 0 {
            write!(f, "{}:", self.line)?;
        }
        if self.column > 0 {
            write!(f, "{}:", self.column)?;
        }
        if !self.field.is_empty() {
            write!(f, " {}:", self.field)?;
        }
        write!(f, " {}", self.message)
    }
}

/// The problems found so far, and what only looks like one.
#[derive(Debug, Default)]
pub(super) struct Problems {
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Problems {
    /// Notes one.
    pub(super) fn add(&mut self, at: Location, place: &Place<'_>, message: impl Into<String>) {
        self.errors.push(Problem::new(at, place, message));
    }

    /// Notes one of another file.
    pub(super) fn push(&mut self, problem: Problem) {
        self.errors.push(problem);
    }

    /// Notes what is legal in another file, but may not be what was meant.
    pub(super) fn push_warning(&mut self, warning: Problem) {
        self.warnings.push(warning);
    }

    /// How many are noted so far, without what only looks like one.
    pub(super) fn count(&self) -> usize {
        self.errors.len()
    }

    /// Notes what is legal, but may be a slip of the pen.
    pub(super) fn warn(&mut self, at: Location, place: &Place<'_>, message: impl Into<String>) {
        self.warnings.push(Problem::new(at, place, message));
    }

    /// Reads one value, or notes why it cannot be.
    pub(super) fn read<T>(
        &mut self,
        text: &Text,
        place: &Place<'_>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        parse(&text.value)
            .map_err(|message| self.add(text.referenced, place, message))
            .ok()
    }

    /// Reads the value of a field that may be left out.
    pub(super) fn optional<T>(
        &mut self,
        text: &Option<Text>,
        place: &Place<'_>,
        field: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.read(text.as_ref()?, &place.field(field), parse)
    }

    /// Reads the value of a field that must be there, in the entry that begins `at`.
    pub(super) fn required<T>(
        &mut self,
        text: &Option<Text>,
        at: Location,
        place: &Place<'_>,
        field: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        if text.is_none() {
            self.add(at, &place.field(field), "is missing: add it");
        }
        self.optional(text, place, field, parse)
    }

    /// Reads every value of a list that can be, and notes why the others cannot.
    pub(super) fn read_all<T>(
        &mut self,
        texts: &Option<Vec<Text>>,
        place: &Place<'_>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let texts = texts.iter().flatten().enumerate();
        texts
            .filter_map(|(i, text)| self.read(text, &place.index(i), &parse))
            .collect()
    }

    /// The warnings where nothing is wrong.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub(super) fn into_warnings(self) -> Result<Vec<Problem>, Vec<Problem>> {
        if self.errors.is_empty() {
            Ok(self.warnings)
        } else {
            Err(self.errors)
        }
    }
}
