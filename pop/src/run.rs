//! `pop run`: a node from its config to its orderly end.

use std::io::Write;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use pop_schemas::Incarnation;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::admin::{self, Admin, Operations};
use crate::cli::{Failure, RunArgs};
use crate::config::{Config, HttpConfig, MediaConfig};
use crate::keys::ApiKeys;
use crate::logging::LogControl;
use crate::mesh::MeshApplier;
use crate::metrics::{
    BusCollector, Collector, DataCollector, DeathCollector, DtlsCollector, HttpCollector, MeshCollector, Metrics, OverlayCollector,
    ProbeCollector, SelfTestCollector, SignalCollector, VipCollector, WorkerCollector,
};
use crate::node::{Joined, Node};
use crate::notify::Notifier;
use crate::probe::ProbeApplier;
use crate::reload::{Applier, AuthApplier, LogApplier, Reloader};
use crate::rtp::{OwnPort, RouteApplier, Routes};
use crate::serve::{self, SocketFile, SourceLimits, Sources};
use crate::tls::{Tls, TlsApplier, TlsIdentity};
use crate::token::{TokenRequest, unix_now_s};
use crate::vip::Vip;
use crate::{bus, demo, http, liveness, logging, node, panic, probe, rejoin, signal as signalling, state};

/// Room of the demo URL.
const DEMO_ROOM: &str = "demo";

/// How often the log tells what it held back.
const SUPPRESSED_REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Serves until SIGTERM or SIGINT.
pub fn run(args: &RunArgs) -> Result<(), Failure> {
    let (mut config, text) = args.config.as_deref().map_or_else(|| Ok(Default::default()), Config::read)?;
    let keys = ApiKeys::from_config(&config.auth)?;
    let log = logging::start(&config.log);
    panic::install_hook();
    if config.bus.is_on() {
        bus::limit_threads().map_err(|error| Failure::Other(format!("the bus cannot be kept to one thread: {error}")))?;
    }
    if args.config.is_none() {
        tracing::info!("no config file: a complete node on loopback; config/pop.toml lists every key");
        leave_out_missing_ipv6(&mut config.media);
    }
    if keys.drawn() {
        tracing::info!("no API keys: one was drawn and ends with this process, and so do its tokens");
    }
    // Before anything starts.
    node::check_host(&config).map_err(Failure::Usage)?;
    let notifier = Notifier::from_environment().map_err(Failure::Other)?;
    let number = state::next_start(&config.node).map_err(Failure::Other)?;
    let available = node::available_cores();
    let workers = config.dataplane.cores.choose(&available).map_err(Failure::Usage)?.len();
    let tls = load_tls(&config.http).map_err(Failure::Usage)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // As many as cores without a worker, so that control does not push workers aside; at least one.
        .worker_threads(available.len().saturating_sub(workers).max(1))
        .enable_all()
        .thread_name("pop-control")
        .build();
    let runtime = runtime.map_err(|error| name_descriptor_limit(Failure::Other(format!("no control threads: {error}"))))?;
    let outcome = runtime.block_on(serve(Start { args, config: &config, text: &text, keys, tls, log, notifier, number }));
    // Drops every task, and with the last handle of the node its workers, which are waited for.
    drop(runtime);
    outcome.map_err(name_descriptor_limit)?;
    tracing::info!("stopped");
    Ok(())
}

/// Descriptors run out wherever one is opened; what to change is the same everywhere.
fn name_descriptor_limit(failure: Failure) -> Failure {
    match failure {
        Failure::Other(sentence) if sentence.contains("(os error 24)") => {
            Failure::Other(format!("{sentence}: raise the limit of open files (LimitNOFILE=, ulimit -n)"))
        }
        other => other,
    }
}

/// What is known before the first listener.
struct Start<'a> {
    args: &'a RunArgs,
    config: &'a Config,
    /// Of the config file; empty without one.
    text: &'a str,
    keys: ApiKeys,
    tls: Option<Tls>,
    log: LogControl,
    notifier: Notifier,
    /// Of this start of the node.
    number: u64,
}

async fn serve(start: Start<'_>) -> Result<(), Failure> {
    let Start { args, config, text, keys, tls, log, notifier, number } = start;
    // Signals are taken from here on, so that one during the start is not the default's sudden end.
    let (mut signals, hangups) = Signals::take().map_err(|error| Failure::Other(format!("no signals: {error}")))?;
    let socket = SocketFile::bind(&config.admin.socket_path()).map_err(Failure::Other)?;
    let public = serve::bind("http.listen", config.http.listen).await.map_err(Failure::Other)?;
    let operator = serve::bind("admin.listen", config.admin.listen).await.map_err(Failure::Other)?;
    let vips: Vec<Vip> = config.http.vip.iter().map(|address| Vip::start(*address)).collect::<Result<_, _>>().map_err(Failure::Other)?;
    let shared = vips.iter().map(Vip::address).filter(|address| !is_heard_at(config.http.listen.ip(), *address));
    let shared = shared.map(|address| serve::bind_vip(SocketAddr::new(address, config.http.listen.port())));
    let shared = shared.collect::<Result<Vec<_>, _>>().map_err(Failure::Other)?;
    let node = rejoin::bind_own(|| Node::start(config, keys.clone())).map_err(Failure::Other)?;
    let mut drawn = [0; 4];
    node.random(&mut drawn);
    let incarnation = Incarnation { start: number, nonce: u64::from(node.origin()) << 32 | u64::from(u32::from_ne_bytes(drawn)) };
    let joined = node.join_others(config, incarnation).await.map_err(Failure::Other)?;

    let public_address = bound(&public, config.http.listen);
    let operator_address = bound(&operator, config.admin.listen);
    let scheme = if tls.is_some() { "https" } else { "http" };
    let url = config.http.public_url.as_ref().map_or_else(|| base_url(scheme, public_address), |url| url.as_str().to_owned());
    let sources = Sources::new(SourceLimits {
        connections: config.http.connections_per_address_max,
        requests_per_s: config.http.requests_per_address_per_s_max,
    });
    let metrics = metrics_of(&node, &joined, &config.node.pop, &vips, HttpCollector { sources: Arc::clone(&sources), tls: tls.clone() });
    let own = [("the HTTP listener", public_address.port()), ("the admin listener", operator_address.port())];
    let own = own.map(|(what, port)| OwnPort { what: what.to_owned(), port }).to_vec();
    let routes = Routes::new(node.clone(), &config.media, own);
    routes.start(&config.rtp.route).await?;
    // Every live key of the config has its applier here.
    let mut appliers: Vec<Box<dyn Applier>> = vec![
        Box::new(LogApplier(log.clone())),
        Box::new(AuthApplier(node.clone())),
        Box::new(ProbeApplier(node.clone())),
        Box::new(RouteApplier(routes.clone())),
    ];
    let carrier = joined.mesh.clone();
    appliers.extend(joined.mesh.map(|mesh| Box::new(MeshApplier(mesh)) as Box<dyn Applier>));
    appliers.extend(joined.bus_files.map(|bus| Box::new(bus) as Box<dyn Applier>));
    appliers.extend(tls.clone().map(|tls| Box::new(TlsApplier(tls)) as Box<dyn Applier>));
    let reloader = Reloader::new(args.config.as_deref(), text, appliers, notifier.clone());
    let operations = Operations { reloader: reloader.clone(), log: log.clone() };
    let admin = Admin::new(node.clone(), Arc::clone(&metrics), routes, operations, incarnation, &url);
    tracing::info!(node = node.name(), socket = %socket.path().display(), "unix socket for the pop command");

    let (stop_public, public_stopped) = watch::channel(false);
    let (stop_operator, operator_stopped) = watch::channel(false);
    let public_router = http::router(
        signalling::routes(node.clone(), config).merge(probe::routes(node.clone())).merge(demo::routes(node.clone(), &config.demo)),
        metrics,
    );
    // Until the end of this function: what answers holds the node.
    let _answering = carrier.map(|mesh| mesh.answer_carried(public_router.clone(), public_stopped.clone()));
    let serve_public = |listener| {
        let (router, sources, stopped) = (public_router.clone(), Some(Arc::clone(&sources)), public_stopped.clone());
        match &tls {
            Some(tls) => tokio::spawn(serve::serve(tls.listen(listener), router, http::CONNECTIONS_MAX, sources, stopped)),
            None => tokio::spawn(serve::serve(listener, router, http::CONNECTIONS_MAX, sources, stopped)),
        }
    };
    let public: Vec<_> = [public].into_iter().chain(shared).map(serve_public).collect();
    // Whoever comes by them is answered from here on.
    node.share_addresses(vips.clone());
    let operators = [
        tokio::spawn(serve::serve(operator, admin.clone().listener_router(), admin::CONNECTIONS_MAX, None, operator_stopped.clone())),
        tokio::spawn(serve::serve(socket, admin.socket_router(), admin::CONNECTIONS_MAX, None, operator_stopped)),
    ];
    let (first, last) = node.media_ports();
    let open_to_others = config.http.public_url.is_some() || !public_address.ip().is_loopback();
    let demo = demo_url(&url, open_to_others, &node.keys());
    Ready { http: url, media: format!("{first}-{last}"), admin: base_url("http", operator_address), demo }.announce(args.json);
    notifier.ready();
    tokio::spawn(liveness::keep_told(node.clone(), notifier.clone()));
    node.start_self_test();
    tokio::spawn(reload_on_hangup(hangups, reloader));
    tokio::spawn(report_suppressed(log));

    let name = signals.next().await;
    notifier.stopping();
    tracing::info!(signal = name, "stopping; a second signal stops at once");
    let stop = async {
        node.stop_accepting();
        let _ = stop_public.send(true);
        for listener in public {
            let _ = listener.await;
        }
        node.shutdown().await;
        // What was said to clients has left by them.
        vips.iter().for_each(Vip::stop);
        let _ = stop_operator.send(true);
        for operator in operators {
            let _ = operator.await;
        }
    };
    tokio::select! {
        () = stop => {}
        name = signals.next() => tracing::warn!(signal = name, "stopped at once"),
    }
    Ok(())
}

/// The line that scripts wait for.
struct Ready {
    http: String,
    media: String,
    admin: String,
    demo: String,
}

impl Ready {
    fn announce(&self, json: bool) {
        let Ready { http, media, admin, demo } = self;
        let line = match json {
            true => json!({ "http": http, "media": media, "admin": admin, "demo": demo }).to_string(),
            false => format!("ready http={http} media={media} admin={admin} demo={demo}"),
        };
        let mut stdout = std::io::stdout().lock();
        // Who started us and closed stdout does not want the line; serving goes on.
        let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    }
}

/// SIGTERM and SIGINT: the end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// With them SIGHUP, which asks for a reload.
    fn take() -> std::io::Result<(Self, Signal)> {
        let end = Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? };
        Ok((end, signal(SignalKind::hangup())?))
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

async fn reload_on_hangup(mut hangups: Signal, reloader: Reloader) {
    while hangups.recv().await.is_some() {
        // The log has the outcome; a signal has nobody to answer.
        let _ = reloader.reload("SIGHUP").await;
    }
}

async fn report_suppressed(log: LogControl) {
    loop {
        tokio::time::sleep(SUPPRESSED_REPORT_INTERVAL).await;
        log.report_suppressed();
    }
}

/// The listener's TLS when the config names a certificate.
fn load_tls(http: &HttpConfig) -> Result<Option<Tls>, String> {
    let (Some(cert), Some(key)) = (&http.tls_cert, &http.tls_key) else { return Ok(None) };
    let identity = TlsIdentity::load(cert, key)?;
    if let Some(warning) = identity.warning() {
        tracing::warn!("{warning}");
    }
    Ok(Some(Tls::new(identity)))
}

fn metrics_of(node: &Node, joined: &Joined, pop: &str, vips: &[Vip], http: HttpCollector) -> Arc<Metrics> {
    let backend = node.workers().first().map_or("none", |worker| worker.backend);
    let (workers, dtls, probe) = (node.clone(), node.clone(), node.clone());
    let workers = WorkerCollector::new(move || workers.workers(), node.relayed_bytes());
    let dtls = DtlsCollector::new(move || dtls.dtls_counters());
    let data = DataCollector::new(Arc::clone(node.data_counters()));
    let probe = ProbeCollector::new(move || probe.probe().requests(&probe.workers()));
    let signal = SignalCollector::new(node.clone());
    let self_test = SelfTestCollector(node.clone());
    let mut collectors: Vec<Box<dyn Collector>> =
        vec![Box::new(workers), Box::new(dtls), Box::new(data), Box::new(probe), Box::new(http), Box::new(signal), Box::new(self_test)];
    collectors.extend(joined.bus.clone().map(|counters| Box::new(BusCollector::new(counters)) as Box<dyn Collector>));
    collectors.extend(node.deaths().map(|deaths| Box::new(DeathCollector(deaths)) as Box<dyn Collector>));
    let overlay = |overlay| Box::new(OverlayCollector { pop: node.pop().to_owned(), overlay }) as Box<dyn Collector>;
    collectors.extend(node.overlay().filter(|_| joined.mesh.is_some()).map(overlay));
    collectors.extend(joined.mesh.clone().map(|mesh| Box::new(MeshCollector::new(mesh)) as Box<dyn Collector>));
    if !vips.is_empty() {
        collectors.push(Box::new(VipCollector { pop: pop.to_owned(), vips: vips.to_vec() }));
    }
    Metrics::new(backend, node.join_seconds(), collectors)
}

fn bound(listener: &tokio::net::TcpListener, configured: SocketAddr) -> SocketAddr {
    listener.local_addr().unwrap_or(configured)
}

/// A listener on `listen` takes what comes for `address`, too: on a wildcard, of which that of IPv6 is IPv4's as well.
fn is_heard_at(listen: IpAddr, address: IpAddr) -> bool {
    listen == address || listen.is_unspecified() && (listen.is_ipv6() || address.is_ipv4())
}

/// How this host reaches `address`: a wildcard is no address to open.
fn base_url(scheme: &str, mut address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { [127, 0, 0, 1].into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    format!("{scheme}://{address}")
}

/// The page with a fresh token that brings guests: everybody who opens it on this host is somebody else in the same room. Without one
/// where others than this host's users reach the node, by its address or through the proxy of its public URL, and could use what a
/// log keeps.
fn demo_url(url: &str, open_to_others: bool, keys: &ApiKeys) -> String {
    let request = TokenRequest { guests: true, ..TokenRequest::new(DEMO_ROOM, "demo") };
    match request.sign(keys, unix_now_s()) {
        Ok(token) if !open_to_others => demo::url(url, DEMO_ROOM, &token),
        _ => format!("{url}/demo"),
    }
}

/// The defaults name `::1`; a host without IPv6 has none, and that is no operator's mistake.
fn leave_out_missing_ipv6(media: &mut MediaConfig) {
    if UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        media.addresses.retain(|address| address.is_ipv4());
        tracing::warn!("this host has no IPv6 loopback address: media is on 127.0.0.1 alone");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_is_reached_on_loopback() {
        assert_eq!(base_url("http", "0.0.0.0:80".parse().expect("an address")), "http://127.0.0.1:80");
        assert_eq!(base_url("http", "[::]:80".parse().expect("an address")), "http://[::1]:80");
        assert_eq!(base_url("https", "192.0.2.1:80".parse().expect("an address")), "https://192.0.2.1:80");
    }

    #[test]
    fn the_demo_url_carries_a_token_only_where_nobody_else_comes() {
        let keys = ApiKeys::draw();
        let local = demo_url("http://127.0.0.1:1", false, &keys);
        assert!(local.starts_with("http://127.0.0.1:1/demo?room=demo#token=ey"), "{local}");
        assert_eq!(demo_url("https://x", true, &keys), "https://x/demo");
    }
}
