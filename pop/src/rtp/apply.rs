//! The routes of the config file: at the start all or none, at a reload what differs.

use async_trait::async_trait;

use super::plan::Plan;
use super::{RouteFailure, Routes, check};
use crate::cli::Failure;
use crate::config::{Config, ROUTES_MAX, RouteConfig, RtpConfig};
use crate::reload::{Applier, Prepared};

impl Routes {
    /// Opens the routes of the config file.
    ///
    /// # Errors
    ///
    /// The first that cannot be opened, with the sentence that says why: [`Failure::Usage`] when the config is to be changed.
    pub async fn start(&self, routes: &[RouteConfig]) -> Result<(), Failure> {
        let mut table = self.shared.table.lock().await;
        for route in routes {
            let name = route.name.as_deref().unwrap_or_default();
            let opened = self.open(&mut table, route.clone(), true).await;
            opened.map_err(|failure| {
                let sentence = format!("RTP route {name:?}: {}", failure.sentence());
                if matches!(failure, RouteFailure::Request(_)) { Failure::Usage(sentence) } else { Failure::Other(sentence) }
            })?;
        }
        Ok(())
    }

    /// Makes the configured routes those of `routes`: what is equal goes on, what is gone or different ends, what is new or
    /// different opens. Routes of the API stay. Returns a sentence for each that could not be opened; it holds up no other.
    pub async fn apply(&self, routes: &[RouteConfig]) -> Vec<String> {
        let mut table = self.shared.table.lock().await;
        let stays = |config: &RouteConfig| routes.contains(config);
        let gone: Vec<String> =
            table.iter().filter(|(_, entry)| entry.is_configured && !stays(&entry.config)).map(|(name, _)| name.clone()).collect();
        for name in gone {
            self.close(&mut table, &name).await;
        }
        let mut failed = Vec::new();
        for route in routes {
            let is_open = table.values().any(|entry| entry.is_configured && entry.config == *route);
            if is_open {
                continue;
            }
            if let Err(failure) = self.open(&mut table, route.clone(), true).await {
                failed.push(format!("RTP route {:?} is not open: {}", route.name.as_deref().unwrap_or_default(), failure.sentence()));
            }
        }
        failed
    }

    /// Checks the table that [`Routes::apply`] would make.
    async fn check_future(&self, new: &RtpConfig) -> Result<(), String> {
        // Against the addresses that are bound, which a reload does not change.
        let media = &self.shared.media;
        check(new, media, &self.shared.own, &|ip| self.is_ours(ip))?;
        let table = self.shared.table.lock().await;
        let stays = || table.iter().filter(|(_, entry)| !entry.is_configured || new.route.contains(&entry.config));
        let is_open = |route: &RouteConfig| table.values().any(|entry| entry.is_configured && entry.config == *route);
        let opens: Vec<&RouteConfig> = new.route.iter().filter(|route| !is_open(route)).collect();
        if stays().count() + opens.len() > ROUTES_MAX {
            return Err(format!("with those of the API there would be more than {ROUTES_MAX} RTP routes: remove one"));
        }
        for route in opens {
            let name = route.name.as_deref().unwrap_or_default();
            let plan = Plan::new(name, route, media, |_| {})?;
            let checked = self.check_opening(name, &plan, stays());
            checked.map_err(|failure| format!("RTP route {name:?}: {}", failure.sentence()))?;
        }
        Ok(())
    }

    /// A line for each configured route that [`Routes::apply`] would end or open.
    async fn differences(&self, routes: &[RouteConfig]) -> Vec<String> {
        let table = self.shared.table.lock().await;
        let ends = table.iter().filter(|(_, entry)| entry.is_configured && !routes.contains(&entry.config));
        let mut lines: Vec<String> = ends.map(|(name, _)| format!("RTP route {name} ends")).collect();
        let opens = routes.iter().filter(|route| !table.values().any(|entry| entry.is_configured && entry.config == **route));
        lines.extend(opens.map(|route| format!("RTP route {} opens", route.name.as_deref().unwrap_or_default())));
        lines
    }
}

/// `[[rtp.route]]` at a reload.
pub struct RouteApplier(pub Routes);

#[async_trait]
impl Applier for RouteApplier {
    fn keys(&self) -> &'static [&'static str] {
        &["rtp"]
    }

    async fn prepare(&self, new: &Config) -> Result<Prepared, String> {
        let (routes, wanted) = (self.0.clone(), new.rtp.route.clone());
        routes.check_future(&new.rtp).await?;
        let changes = routes.differences(&wanted).await;
        Ok(Prepared::trying(changes, async move { routes.apply(&wanted).await }))
    }
}
