//! Access tokens: LiveKit's format (JWT, HS256, `video` grants), so that existing token servers and SDKs work unchanged.
//!
//! Time is a parameter and the algorithm is ours to choose, never the token's.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use pop_schemas::{Identity, SessionId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::member::{Permissions, Source};

/// How long a token holds when nobody says otherwise; LiveKit's SDKs use the same 6 hours.
pub const TTL_DEFAULT: Duration = Duration::from_secs(6 * 3_600);

/// Longest token that is looked at, in bytes. Room for metadata; far below what a proxy passes in a header.
pub const TOKEN_LEN_MAX: usize = 8 * 1_024;

/// How far a token server's clock may run ahead of ours, in seconds. `exp` gets no such grace: who issues a token chooses it.
const NOT_BEFORE_GRACE_S: u64 = 60;

/// What a token says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Claims {
    /// The API key's id.
    pub iss: String,
    /// The identity.
    #[serde(default)]
    pub sub: String,
    /// Not valid before, in Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<u64>,
    /// Not valid from then on, in Unix seconds.
    pub exp: u64,
    /// A name to show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Opaque to us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<String>,
    /// Opaque to us, by key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
    /// What it allows.
    #[serde(default)]
    pub video: VideoGrant,
    /// Ours alone, other servers do not read it: the holder may ask this node for tokens of guests, see [`Access::guest`].
    #[serde(default, skip_serializing_if = "is_false")]
    pub guests: bool,
    /// Ours alone: a guest's. It never holds longer than the token that brought the guest.
    #[serde(default, skip_serializing_if = "is_false")]
    pub guest: bool,
    /// Everything else: it is kept when the token is signed anew.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl Claims {
    /// Makes them those of a token that lets its holder come back, until `until_s` at least. What its holder may do as a server, or
    /// for guests, ends with the token that said so; a guest's holds no longer than it did.
    pub fn renew(&mut self, until_s: u64) {
        if !self.guest {
            self.exp = self.exp.max(until_s);
        }
        self.guests = false;
        (self.video.room_admin, self.video.room_create, self.video.room_list) = (false, false, false);
    }
}

/// LiveKit's `video` grant. Grants of things that this node does not have are kept and not looked at.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VideoGrant {
    /// The room that it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room: Option<String>,
    /// May come in.
    #[serde(default, skip_serializing_if = "is_false")]
    pub room_join: bool,
    /// May manage the room.
    #[serde(default, skip_serializing_if = "is_false")]
    pub room_admin: bool,
    /// May publish; allowed when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub can_publish: Option<bool>,
    /// May watch; allowed when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub can_subscribe: Option<bool>,
    /// May send data; as `can_publish` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub can_publish_data: Option<bool>,
    /// Is not shown to the others.
    #[serde(default, skip_serializing_if = "is_false")]
    pub hidden: bool,
    /// Is a recorder.
    #[serde(default, skip_serializing_if = "is_false")]
    pub recorder: bool,
    /// May make rooms, and end them.
    #[serde(default, skip_serializing_if = "is_false")]
    pub room_create: bool,
    /// May see which rooms there are.
    #[serde(default, skip_serializing_if = "is_false")]
    pub room_list: bool,
    /// What it may publish: `camera`, `microphone`, `screen_share`, `screen_share_audio`; everything when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub can_publish_sources: Vec<String>,
    /// May change its own name, metadata and attributes; not allowed when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub can_update_own_metadata: Option<bool>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl VideoGrant {
    /// Its holder may manage `room`.
    pub fn may_manage(&self, room: &SessionId) -> Result<(), GrantError> {
        if !self.room_admin {
            return Err(GrantError::NoAdmin);
        }
        (self.room.as_deref() == Some(room.as_str())).then_some(()).ok_or(GrantError::OtherRoom)
    }

    /// Its holder may make rooms, and end them.
    pub fn may_create(&self) -> Result<(), GrantError> {
        self.room_create.then_some(()).ok_or(GrantError::NoCreate)
    }

    /// Its holder may see which rooms there are.
    pub fn may_list(&self) -> Result<(), GrantError> {
        self.room_list.then_some(()).ok_or(GrantError::NoList)
    }

    /// What it allows somebody who is in the room.
    pub fn permissions(&self) -> Permissions {
        let publish = self.can_publish.unwrap_or(true);
        Permissions {
            subscribe: self.can_subscribe.unwrap_or(true),
            publish,
            publish_data: self.can_publish_data.unwrap_or(publish),
            sources: self.can_publish_sources.iter().map(|name| source_of(name)).collect(),
            hidden: self.hidden,
            recorder: self.recorder,
            update_metadata: self.can_update_own_metadata.unwrap_or(false),
        }
    }

    /// Makes it allow what `permissions` say.
    pub fn set_permissions(&mut self, permissions: &Permissions) {
        self.can_subscribe = Some(permissions.subscribe);
        self.can_publish = Some(permissions.publish);
        self.can_publish_data = Some(permissions.publish_data);
        self.can_publish_sources = permissions.sources.iter().map(|source| name_of(*source).to_owned()).collect();
        self.hidden = permissions.hidden;
        self.recorder = permissions.recorder;
        self.can_update_own_metadata = Some(permissions.update_metadata);
    }
}

/// A name that nobody knows is the unknown source: a grant that names something restricts, whatever it names.
fn source_of(name: &str) -> Source {
    const ALL: [Source; 4] = [Source::Camera, Source::Microphone, Source::ScreenShare, Source::ScreenShareAudio];
    ALL.into_iter().find(|source| name_of(*source).eq_ignore_ascii_case(name)).unwrap_or_default()
}

const fn name_of(source: Source) -> &'static str {
    match source {
        Source::Unknown => "unknown",
        Source::Camera => "camera",
        Source::Microphone => "microphone",
        Source::ScreenShare => "screen_share",
        Source::ScreenShareAudio => "screen_share_audio",
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}

/// Why a token is not believed: an authentication failure (401).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// More than [`TOKEN_LEN_MAX`] bytes.
    #[error("the token is longer than {TOKEN_LEN_MAX} bytes")]
    TooLong,
    /// Not three base64url parts of the right JSON.
    #[error("the token is not a well-formed JWT with the claims iss, sub and exp")]
    Malformed,
    /// Another algorithm than HS256.
    #[error("the token's algorithm is not HS256")]
    Algorithm,
    /// `iss` is not one of this node's API keys.
    #[error("the token's API key (iss) is not known here")]
    UnknownKey,
    /// The signature is wrong.
    #[error("the token's signature is wrong")]
    Signature,
    /// `exp` has passed.
    #[error("the token has expired (exp)")]
    Expired,
    /// `nbf` is yet to come.
    #[error("the token is not valid yet (nbf)")]
    NotYetValid,
    /// `sub` is not an identity.
    #[error("the token's identity (sub) {0}")]
    Identity(pop_schemas::IdError),
}

/// Why a good token does not allow this: an authorisation failure (403).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// `video.room` is absent or another room.
    #[error("the token is not for this room (video.room)")]
    OtherRoom,
    /// `video.roomJoin` is not true.
    #[error("the token does not allow joining a room (video.roomJoin)")]
    NoJoin,
    /// `video.canPublish` is false.
    #[error("the token does not allow publishing (video.canPublish)")]
    NoPublish,
    /// `video.canSubscribe` is false.
    #[error("the token does not allow watching (video.canSubscribe)")]
    NoSubscribe,
    /// `video.roomAdmin` is not true.
    #[error("the token does not allow managing a room (video.roomAdmin)")]
    NoAdmin,
    /// `video.roomCreate` is not true.
    #[error("the token does not allow making and ending rooms (video.roomCreate)")]
    NoCreate,
    /// `video.roomList` is not true.
    #[error("the token does not allow listing rooms (video.roomList)")]
    NoList,
}

/// A token that is genuine and in time.
#[derive(Clone, Debug, PartialEq)]
pub struct Access {
    identity: Identity,
    claims: Claims,
}

impl Access {
    /// Who its holder is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Its holder is not shown to the others.
    pub fn is_hidden(&self) -> bool {
        self.claims.video.hidden
    }

    /// Everything that it says.
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// What the token of a guest says: the same room, the same rights to watch and publish, an identity of its own, no longer a
    /// life, and no guests in turn. It names the same API key, so it ends with that key. `None` when this token brings no guests.
    pub fn guest(&self, identity: &Identity, name: &str) -> Option<Claims> {
        let own = self.claims.video.clone();
        let video = VideoGrant { room_admin: false, room_create: false, room_list: false, recorder: false, rest: Map::new(), ..own };
        self.claims.guests.then(|| Claims {
            iss: self.claims.iss.clone(),
            sub: identity.to_string(),
            nbf: self.claims.nbf,
            exp: self.claims.exp,
            name: Some(name.to_owned()),
            video,
            guest: true,
            ..Claims::default()
        })
    }

    /// The same, to be signed anew with other words.
    pub fn claims_mut(&mut self) -> &mut Claims {
        &mut self.claims
    }

    /// Its holder may come into `room`.
    pub fn may_join(&self, room: &SessionId) -> Result<(), GrantError> {
        let video = &self.claims.video;
        if !video.room_join {
            return Err(GrantError::NoJoin);
        }
        if video.room.as_deref() != Some(room.as_str()) {
            return Err(GrantError::OtherRoom);
        }
        Ok(())
    }

    /// Its holder may publish into `room`.
    pub fn may_publish(&self, room: &SessionId) -> Result<(), GrantError> {
        self.may_join(room)?;
        self.claims.video.can_publish.unwrap_or(true).then_some(()).ok_or(GrantError::NoPublish)
    }

    /// Its holder may watch `room`.
    pub fn may_watch(&self, room: &SessionId) -> Result<(), GrantError> {
        self.may_join(room)?;
        self.claims.video.can_subscribe.unwrap_or(true).then_some(()).ok_or(GrantError::NoSubscribe)
    }
}

/// Signs `claims` with the secret of the API key that `claims.iss` names.
pub fn sign(claims: &Claims, secret: &[u8]) -> Result<String, TokenError> {
    Identity::new(&claims.sub).map_err(TokenError::Identity)?;
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(secret)).map_err(|_| TokenError::Malformed)
}

/// Checks a token at `now_s`, in Unix seconds. `secret_of` finds the secret of an API key by its id.
pub fn verify<'k>(token: &str, now_s: u64, secret_of: impl FnOnce(&str) -> Option<&'k [u8]>) -> Result<Access, TokenError> {
    let claims = verify_claims(token, now_s, secret_of)?;
    let identity = Identity::new(&claims.sub).map_err(TokenError::Identity)?;
    Ok(Access { identity, claims })
}

/// The same for the token of a server, which is nobody: it needs no identity.
pub fn verify_claims<'k>(token: &str, now_s: u64, secret_of: impl FnOnce(&str) -> Option<&'k [u8]>) -> Result<Claims, TokenError> {
    if token.len() > TOKEN_LEN_MAX {
        return Err(TokenError::TooLong);
    }
    // The header is read for a clear error alone: below, HS256 is what we check with, whatever it says.
    check_algorithm(token)?;
    let unverified: Issuer = jsonwebtoken::dangerous::insecure_decode_claims(token).map_err(|_| TokenError::Malformed)?;
    let secret = secret_of(&unverified.iss).ok_or(TokenError::UnknownKey)?;
    let decoded = jsonwebtoken::decode::<Claims>(token, &DecodingKey::from_secret(secret), &hs256());
    let claims = decoded.map_err(|error| match error.kind() {
        ErrorKind::InvalidSignature => TokenError::Signature,
        ErrorKind::InvalidAlgorithm => TokenError::Algorithm,
        _ => TokenError::Malformed,
    })?;
    let claims = claims.claims;
    if now_s >= claims.exp {
        return Err(TokenError::Expired);
    }
    if claims.nbf.is_some_and(|nbf| nbf > now_s.saturating_add(NOT_BEFORE_GRACE_S)) {
        return Err(TokenError::NotYetValid);
    }
    Ok(claims)
}

/// The one claim that is read before the signature: it names the key to check with.
#[derive(Deserialize)]
struct Issuer {
    iss: String,
}

/// `alg` of the header. Read by hand, because the library's enum has no name for `none`, which deserves the same answer as
/// any other wrong algorithm.
fn check_algorithm(token: &str) -> Result<(), TokenError> {
    #[derive(Deserialize)]
    struct Algorithm {
        alg: String,
    }
    let header = token.split('.').next().unwrap_or_default();
    let header = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(header).map_err(|_| TokenError::Malformed)?;
    let header: Algorithm = serde_json::from_slice(&header).map_err(|_| TokenError::Malformed)?;
    if header.alg == "HS256" { Ok(()) } else { Err(TokenError::Algorithm) }
}

/// Signature only: exp and nbf are checked against the given time above.
fn hs256() -> Validation {
    let mut validation = Validation::new(Algorithm::HS256);
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    validation
}
