//! Reload: a new config file is taken as a whole or not at all.
//!
//! ```text
//! SIGHUP, pop reload -> read, parse, check -> every applier prepares -> every applier applies -> log, audit line, reply
//!                             |                      |
//!                             +------ refused -------+---> the old config stays; the sentence says why and where
//! ```
//! A key is live when an [`Applier`] names it. Every other key that changed is named as one that needs a restart.

mod appliers;
mod diff;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use serde::Serialize;
use tokio::sync::Mutex;
use toml::Table;

pub use appliers::{AuthApplier, LogApplier};
pub use diff::Change;

use crate::config::Config;
use crate::logging::AUDIT;
use crate::node;
use crate::notify::Notifier;
use crate::token::unix_now_s;

/// Takes some keys of a new config while the node runs.
#[async_trait]
pub trait Applier: Send + Sync {
    /// The live keys, as `section.key`, or `section` for all of its keys.
    fn keys(&self) -> &'static [&'static str];

    /// Checks what `new` wants and gets it ready, but changes nothing yet: another applier may still refuse. Called at every
    /// reload, since a file that a key names may have changed while the key did not.
    ///
    /// # Errors
    ///
    /// One sentence that says what to change, as `file:line:column: sentence` where there is such a place. Then nothing of the
    /// new config is applied.
    async fn prepare(&self, new: &Config) -> Result<Prepared, String>;
}

/// What an applier has got ready.
pub struct Prepared {
    changes: Vec<String>,
    pub(crate) apply: Pin<Box<dyn Future<Output = Vec<String>> + Send>>,
}

impl Prepared {
    /// `changes`: a line for each thing that will be different, without secrets; what a changed key's value already tells need
    /// not be said. `apply` cannot fail.
    pub fn new(changes: Vec<String>, apply: impl Future<Output = ()> + Send + 'static) -> Self {
        let apply = async move {
            apply.await;
            Vec::new()
        };
        Self { changes, apply: Box::pin(apply) }
    }

    /// As [`Self::new`], where only the attempt can tell: `apply` does what it can, and gives a sentence for each thing that
    /// failed after all.
    pub fn trying(changes: Vec<String>, apply: impl Future<Output = Vec<String>> + Send + 'static) -> Self {
        Self { changes, apply: Box::pin(apply) }
    }
}

/// What a reload did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The config file.
    pub file: PathBuf,
    /// Keys whose new value is in force.
    pub applied: Vec<Change>,
    /// Keys whose new value needs a restart, those of earlier reloads included.
    pub restart: Vec<Change>,
    /// What else is different: API keys, certificates, routes.
    pub changes: Vec<String>,
    /// What failed although nothing spoke against it: the rest of the new config is in force.
    pub failed: Vec<String>,
}

/// How the last reload went; the start counts as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastReload {
    /// All of the file is in force, but for what needs a restart.
    pub successful: bool,
    /// When a file was last taken whole, in Unix seconds.
    pub success_at_s: u64,
}

/// Why nothing was reloaded, with the sentence for who asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The node runs without a config file.
    NoFile(String),
    /// The new config is wrong.
    Config(String),
}

/// Reloads the config of a running node, one reload at a time. Cheap to clone.
#[derive(Clone)]
pub struct Reloader {
    shared: Arc<Shared>,
}

struct Shared {
    file: Option<PathBuf>,
    appliers: Vec<Box<dyn Applier>>,
    notifier: Notifier,
    last: Mutex<LastReload>,
    /// The values in force: the file as it was read, live keys as of the last reload, the others as of the start.
    running: Mutex<Table>,
}

impl Reloader {
    /// For a node that was started with `file` and its `text`.
    pub fn new(file: Option<&Path>, text: &str, appliers: Vec<Box<dyn Applier>>, notifier: Notifier) -> Self {
        let running = Mutex::new(text.parse().expect("the node runs with it"));
        let last = Mutex::new(LastReload { successful: true, success_at_s: unix_now_s() });
        Self { shared: Arc::new(Shared { file: file.map(Path::to_owned), appliers, notifier, last, running }) }
    }

    /// How the last one went.
    pub async fn last(&self) -> LastReload {
        *self.shared.last.lock().await
    }

    /// Reads the file again. `by` is who asked, for the audit line.
    ///
    /// # Errors
    ///
    /// The old config stays as it was.
    pub async fn reload(&self, by: &'static str) -> Result<Report, Refusal> {
        let shared = Arc::clone(&self.shared);
        // In a task of its own: whoever asked may hang up half-way, and half a config would be nobody's.
        let reloaded = tokio::spawn(async move { shared.reload(by).await });
        reloaded.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }
}

impl Shared {
    async fn reload(&self, by: &'static str) -> Result<Report, Refusal> {
        let Some(file) = &self.file else {
            let sentence = "this node was started without a config file: start it with `pop run --config FILE` to reload one";
            tracing::warn!(by, "not reloaded: {sentence}");
            return Err(Refusal::NoFile(sentence.to_owned()));
        };
        let mut running = self.running.lock().await;
        self.notifier.reloading();
        let outcome = self.take(file, &mut running).await;
        self.notifier.ready();
        let successful = outcome.as_ref().is_ok_and(|report| report.failed.is_empty());
        let mut last = self.last.lock().await;
        *last = LastReload { successful, success_at_s: if successful { unix_now_s() } else { last.success_at_s } };
        drop(last);
        match &outcome {
            Ok(report) => tell(by, report),
            Err(sentence) => {
                tracing::error!("the new config is refused and the old one stays: {sentence}");
                tracing::info!(target: AUDIT, by, file = %file.display(), refused = %sentence, "reload");
            }
        }
        outcome.map_err(Refusal::Config)
    }

    async fn take(&self, file: &Path, running: &mut Table) -> Result<Report, String> {
        let (config, text) = Config::read(file).map_err(|error| error.to_string())?;
        node::check_host(&config)?;
        let mut prepared = Vec::new();
        for applier in &self.appliers {
            prepared.push(applier.prepare(&config).await?);
        }
        // The new config is taken from here on.
        let (mut changes, mut failed) = (Vec::new(), Vec::new());
        for Prepared { changes: said, apply } in prepared {
            changes.extend(said);
            failed.extend(apply.await);
        }
        let new: Table = text.parse().expect("it was read as a config above");
        let (applied, restart): (Vec<Change>, Vec<Change>) =
            diff::changes(running, &new).into_iter().partition(|change| self.is_live(&change.key));
        for change in &applied {
            diff::take_key(running, &new, &change.key);
        }
        Ok(Report { file: file.to_owned(), applied, restart, changes, failed })
    }

    fn is_live(&self, key: &str) -> bool {
        let mut live = self.appliers.iter().flat_map(|applier| applier.keys());
        live.any(|named| key.strip_prefix(named).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
    }
}

fn tell(by: &str, report: &Report) {
    for Change { key, from, to } in &report.applied {
        tracing::info!(key, from, to, "changed");
    }
    for sentence in &report.failed {
        tracing::error!("not reloaded: {sentence}");
    }
    for change in &report.changes {
        tracing::info!("{change}");
    }
    for Change { key, from, to } in &report.restart {
        tracing::warn!(key, from, to, "changed in the file, and needs a restart");
    }
    let names = |changes: &[Change]| changes.iter().map(|change| change.key.as_str()).collect::<Vec<_>>().join(",");
    let (applied, restart, file) = (names(&report.applied), names(&report.restart), report.file.display());
    tracing::info!(target: AUDIT, by, %file, applied, restart, others = report.changes.len(), failed = report.failed.len(), "reload");
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Counts what it applied, or refuses.
    struct Counting {
        applied: Arc<AtomicUsize>,
        refuses: bool,
    }

    #[async_trait]
    impl Applier for Counting {
        fn keys(&self) -> &'static [&'static str] {
            &["log", "media.port"]
        }

        async fn prepare(&self, _: &Config) -> Result<Prepared, String> {
            if self.refuses {
                return Err("key.pem: it does not fit its certificate".to_owned());
            }
            let applied = Arc::clone(&self.applied);
            Ok(Prepared::new(vec!["one more".to_owned()], async move {
                applied.fetch_add(1, Ordering::Relaxed);
            }))
        }
    }

    fn reloader(file: Option<&Path>, text: &str, refusals: &[bool]) -> (Reloader, Arc<AtomicUsize>) {
        let applied = Arc::<AtomicUsize>::default();
        let counting = |refuses: &bool| Box::new(Counting { applied: Arc::clone(&applied), refuses: *refuses }) as Box<dyn Applier>;
        let appliers = refusals.iter().map(counting).collect();
        (Reloader::new(file, text, appliers, Notifier::default()), applied)
    }

    fn file(name: &str, text: &str) -> PathBuf {
        let file = std::env::temp_dir().join(format!("pop-reload-{}-{name}.toml", std::process::id()));
        std::fs::write(&file, text).expect("temporary files can be made");
        file
    }

    #[tokio::test]
    async fn one_applier_that_refuses_keeps_all_of_the_old_config() {
        let file = file("refused", "log.level = \"debug\"");
        let (refusing, applied) = reloader(Some(&file), "", &[false, true]);
        let refusal = refusing.reload("test").await.expect_err("the second refuses");
        assert_eq!(refusal, Refusal::Config("key.pem: it does not fit its certificate".to_owned()));
        assert_eq!(applied.load(Ordering::Relaxed), 0);
        assert!(!refusing.last().await.successful);
        // The change is still to come.
        let (willing, applied) = reloader(Some(&file), "", &[false, false]);
        let report = willing.reload("test").await.expect("nobody refuses");
        assert_eq!((report.applied.len(), report.changes.len(), applied.load(Ordering::Relaxed)), (1, 2, 2));
        assert!(willing.last().await.successful);
        assert!(willing.reload("test").await.expect("nobody refuses").applied.is_empty(), "it is in force");
        std::fs::remove_file(file).expect("it was made here");
    }

    #[tokio::test]
    async fn a_key_is_live_by_its_name_or_by_its_sections() {
        let file = file("live", "log.level = \"debug\"\nmedia = { port = 1, addresses = [\"127.0.0.1\"] }\n");
        let (reloader, _) = reloader(Some(&file), "", &[false]);
        let report = reloader.reload("test").await.expect("it is right");
        let keys = |changes: &[Change]| changes.iter().map(|change| change.key.clone()).collect::<Vec<_>>();
        assert_eq!(
            (keys(&report.applied), keys(&report.restart)),
            (vec!["log.level".into(), "media.port".into()], vec!["media.addresses".into()])
        );
        std::fs::remove_file(file).expect("it was made here");
    }

    #[tokio::test]
    async fn without_a_file_there_is_nothing_to_reload() {
        let refusal = reloader(None, "", &[false]).0.reload("test").await.expect_err("no file");
        assert!(matches!(refusal, Refusal::NoFile(sentence) if sentence.contains("pop run --config FILE")));
    }
}
