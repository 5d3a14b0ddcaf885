//! What the measurements share: sizes and conditions, an embedding API, single changes that are waited for, tables,
//! plots. It never decides what is measured.

// Each measurement uses a part of it.
#![allow(dead_code)]

/// Sizes, conditions, files.
pub mod setting;

/// An embedding API.
pub mod loopback;

/// An embedding model.
pub mod embedder;

/// A change until its vector is seen.
pub mod visible;

/// Indexes that are built after the load.
pub mod indexes;

/// Tables in Markdown.
pub mod tables;

/// Bar charts.
pub mod plot;
