//! Access tokens: what is believed, what is not, and with which reason.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use pop_schemas::{Identity, SessionId};
use pop_session::token::{Access, Claims, GrantError, TOKEN_LEN_MAX, TokenError, VideoGrant, sign, verify};
use serde_json::json;

const KEY: &str = "devkey";
const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const OTHER: &[u8] = b"fedcba9876543210fedcba9876543210";
const NOW: u64 = 1_800_000_000;

fn check(token: &str) -> Result<Access, TokenError> {
    verify(token, NOW, |id| (id == KEY).then_some(SECRET))
}

fn claims() -> Claims {
    let video = VideoGrant { room: Some("stage".into()), room_join: true, ..VideoGrant::default() };
    Claims { iss: KEY.into(), sub: "ann".into(), exp: NOW + 60, video, ..Claims::default() }
}

/// A token of any header and payload, signed with HMAC-SHA256 whatever its header says.
fn forge(header: &serde_json::Value, payload: &serde_json::Value, secret: &[u8]) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(payload.to_string()));
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &EncodingKey::from_secret(secret), Algorithm::HS256).unwrap();
    format!("{message}.{signature}")
}

fn payload() -> serde_json::Value {
    serde_json::to_value(claims()).unwrap()
}

fn room(name: &str) -> SessionId {
    SessionId::new(name).unwrap()
}

#[test]
fn a_token_of_livekits_shape_is_read() {
    // The payload is what livekit-server-sdk-js writes for toJwt() with a name, metadata and attributes.
    let payload = json!({
        "name": "Ann", "metadata": "{}", "attributes": {"seat": "4"}, "sha256": "", "kind": "standard", "roomConfig": {"name": "x"},
        "video": {"roomJoin": true, "room": "stage", "canPublish": true, "canSubscribe": false, "canPublishData": true,
                  "canPublishSources": ["camera"], "canUpdateOwnMetadata": true, "hidden": true, "agent": false},
        "iss": KEY, "exp": NOW + 600, "nbf": 0, "sub": "ann"
    });
    let access = check(&forge(&json!({"alg": "HS256"}), &payload, SECRET)).unwrap();
    assert_eq!((access.identity().as_str(), access.is_hidden(), access.claims().name.as_deref()), ("ann", true, Some("Ann")));
    assert_eq!(access.may_publish(&room("stage")), Ok(()));
    assert_eq!(access.may_watch(&room("stage")), Err(GrantError::NoSubscribe));
}

#[test]
fn what_is_signed_here_has_livekits_names_and_comes_back() {
    let claims = Claims {
        video: VideoGrant {
            can_publish: Some(false),
            can_subscribe: Some(true),
            can_publish_data: Some(true),
            hidden: true,
            ..claims().video
        },
        ..claims()
    };
    let token = sign(&claims, SECRET).unwrap();
    assert_eq!(*check(&token).unwrap().claims(), claims);
    let payload: serde_json::Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap()).unwrap();
    let video =
        json!({"room": "stage", "roomJoin": true, "canPublish": false, "canSubscribe": true, "canPublishData": true, "hidden": true});
    assert_eq!(payload, json!({"iss": KEY, "sub": "ann", "exp": NOW + 60, "video": video}));
}

#[test]
fn a_renewed_token_lets_its_holder_come_back_and_nothing_more() {
    let mut claims = Claims { guests: true, ..claims() };
    claims.video.room_admin = true;
    let access = check(&sign(&claims, SECRET).unwrap()).unwrap();
    let mut guest = access.guest(&Identity::new("guest-1").unwrap(), "Bob").expect("the token brings guests");
    let end = claims.exp + 600;
    claims.renew(end);
    assert_eq!((claims.exp, claims.guests, claims.video.room_admin, claims.video.room_join), (end, false, false, true));
    guest.renew(end);
    assert_eq!(guest.exp, access.claims().exp, "a guest goes when the link does");
}

#[test]
fn a_guest_gets_the_rights_of_the_link_and_nothing_of_its_holders_office() {
    let host = Claims {
        guests: true,
        name: Some("Ann".into()),
        metadata: Some("host".into()),
        video: VideoGrant { room_admin: true, recorder: true, can_publish: Some(false), hidden: true, ..claims().video },
        ..claims()
    };
    let access = check(&sign(&host, SECRET).unwrap()).unwrap();
    let guest = access.guest(&Identity::new("guest-1").unwrap(), "Bob").expect("the token brings guests");
    let seen = check(&sign(&guest, SECRET).unwrap()).unwrap();
    assert_eq!(
        (seen.identity().as_str(), seen.claims().name.as_deref(), seen.claims().metadata.as_deref()),
        ("guest-1", Some("Bob"), None)
    );
    assert_eq!((seen.claims().exp, seen.claims().iss.as_str()), (NOW + 60, KEY), "it ends with the link and with its key");
    assert!(seen.may_watch(&room("stage")).is_ok() && seen.is_hidden());
    assert_eq!(seen.may_publish(&room("stage")), Err(GrantError::NoPublish));
    assert!(!seen.claims().video.room_admin && !seen.claims().video.recorder);
    assert_eq!(seen.guest(&Identity::new("guest-2").unwrap(), "Eve"), None, "a guest brings no guests");
    assert_eq!(check(&sign(&claims(), SECRET).unwrap()).unwrap().guest(&Identity::new("guest-3").unwrap(), "Eve"), None);
}

#[test]
fn absent_grants_mean_what_livekit_means() {
    let access = check(&sign(&claims(), SECRET).unwrap()).unwrap();
    assert_eq!((access.may_publish(&room("stage")), access.may_watch(&room("stage"))), (Ok(()), Ok(())));
    for (video, error) in [
        (json!({"room": "stage"}), GrantError::NoJoin),
        (json!({"room": "stage", "roomJoin": false}), GrantError::NoJoin),
        (json!({"roomJoin": true}), GrantError::OtherRoom),
        (json!({"roomJoin": true, "room": "stage2"}), GrantError::OtherRoom),
        (json!({"roomJoin": true, "room": "Stage"}), GrantError::OtherRoom),
        (json!({"roomJoin": true, "room": "stage", "canPublish": false}), GrantError::NoPublish),
        (json!({}), GrantError::NoJoin),
    ] {
        let mut payload = payload();
        payload["video"] = video;
        let access = check(&forge(&json!({"alg": "HS256"}), &payload, SECRET)).unwrap();
        assert_eq!(access.may_publish(&room("stage")), Err(error), "{payload}");
    }
}

#[test]
fn the_algorithm_is_ours_to_choose() {
    for alg in ["none", "None", "NONE", "nOnE", "RS256", "ES256", "PS256", "EdDSA", "HS384", "HS512", "hs256", ""] {
        // Signed with our own secret: only the algorithm is wrong.
        let token = forge(&json!({"alg": alg, "typ": "JWT"}), &payload(), SECRET);
        assert_eq!(check(&token), Err(TokenError::Algorithm), "{alg}");
        let unsigned = format!("{}.", token.rsplit_once('.').unwrap().0);
        assert_eq!(check(&unsigned), Err(TokenError::Algorithm), "{alg}");
    }
    let real_384 = jsonwebtoken::encode(&Header::new(Algorithm::HS384), &claims(), &EncodingKey::from_secret(SECRET)).unwrap();
    assert_eq!(check(&real_384), Err(TokenError::Algorithm));
}

#[test]
fn a_key_that_the_token_brings_along_is_not_used() {
    let jwk = json!({"kty": "oct", "k": URL_SAFE_NO_PAD.encode(OTHER), "alg": "HS256"});
    for header in [
        json!({"alg": "HS256", "jwk": jwk}),
        json!({"alg": "HS256", "kid": "../../dev/null"}),
        json!({"alg": "HS256", "kid": "other"}),
        json!({"alg": "HS256", "jku": "http://127.0.0.1/keys"}),
    ] {
        assert_eq!(check(&forge(&header, &payload(), OTHER)), Err(TokenError::Signature), "{header}");
    }
    assert_eq!(check(&forge(&json!({"alg": "HS256"}), &payload(), b"")), Err(TokenError::Signature));
}

#[test]
fn an_unknown_key_is_told_from_a_wrong_signature() {
    assert_eq!(check(&sign(&claims(), OTHER).unwrap()), Err(TokenError::Signature));
    assert_eq!(check(&sign(&Claims { iss: "nobody".into(), ..claims() }, SECRET).unwrap()), Err(TokenError::UnknownKey));
    assert_eq!(check(&sign(&Claims { iss: String::new(), ..claims() }, SECRET).unwrap()), Err(TokenError::UnknownKey));
    // The key is the issuer's, not the header's.
    let mut payload = payload();
    payload["iss"] = "nobody".into();
    assert_eq!(check(&forge(&json!({"alg": "HS256", "kid": KEY}), &payload, SECRET)), Err(TokenError::UnknownKey));
}

#[test]
fn time_is_checked_to_the_second() {
    let at = |exp, nbf| check(&sign(&Claims { exp, nbf, ..claims() }, SECRET).unwrap()).map(|_| ());
    assert_eq!(at(NOW, None), Err(TokenError::Expired));
    assert_eq!(at(0, None), Err(TokenError::Expired));
    assert_eq!(at(NOW + 1, None), Ok(()));
    assert_eq!(at(u64::MAX, Some(0)), Ok(()));
    assert_eq!(at(NOW + 600, Some(NOW + 60)), Ok(()), "the token server's clock may run ahead a little");
    assert_eq!(at(NOW + 600, Some(NOW + 61)), Err(TokenError::NotYetValid));
    assert_eq!(at(NOW + 600, Some(u64::MAX)), Err(TokenError::NotYetValid));
}

#[test]
fn claims_that_are_absent_or_of_another_type_are_malformed() {
    for (claim, value) in [
        ("exp", json!(null)),
        ("exp", json!("1800000060")),
        ("exp", json!(-1)),
        ("exp", json!(1e300)),
        ("iss", json!(7)),
        ("sub", json!({})),
        ("video", json!("all")),
        ("video", json!({"roomJoin": "true"})),
        ("nbf", json!([])),
    ] {
        let mut payload = payload();
        payload[claim] = value;
        assert_eq!(check(&forge(&json!({"alg": "HS256"}), &payload, SECRET)), Err(TokenError::Malformed), "{payload}");
    }
    let mut payload = payload();
    payload.as_object_mut().unwrap().remove("exp");
    assert_eq!(check(&forge(&json!({"alg": "HS256"}), &payload, SECRET)), Err(TokenError::Malformed));
}

#[test]
fn an_identity_that_cannot_be_one_is_refused_on_both_sides() {
    for sub in ["", "a/b", "a\0", &"x".repeat(129)] {
        assert!(matches!(sign(&Claims { sub: sub.into(), ..claims() }, SECRET), Err(TokenError::Identity(_))), "{sub:?}");
        let mut payload = payload();
        payload["sub"] = sub.into();
        assert!(matches!(check(&forge(&json!({"alg": "HS256"}), &payload, SECRET)), Err(TokenError::Identity(_))), "{sub:?}");
    }
}

#[test]
fn garbage_is_malformed() {
    for token in ["", ".", "..", "...", "a.b.c", "eyJhbGciOiJIUzI1NiJ9", "eyJhbGciOiJIUzI1NiJ9..", "\u{0}", "Bearer x.y.z"] {
        assert_eq!(check(token), Err(TokenError::Malformed), "{token:?}");
    }
    assert_eq!(check(&"a".repeat(TOKEN_LEN_MAX + 1)), Err(TokenError::TooLong));
    let good = sign(&claims(), SECRET).unwrap();
    assert_eq!(check(&format!("{good}.x")).map(|_| ()), Err(TokenError::Malformed));
}

#[test]
fn no_mutation_of_a_good_token_is_believed() {
    let seed: u64 = 11;
    let rounds = if cfg!(debug_assertions) { 20_000 } else { 1_000_000 };
    let good = sign(&claims(), SECRET).unwrap().into_bytes();
    let mut state = seed;
    let mut random = move |end: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % end
    };
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.=+/ ";
    let mut past_the_shape = 0u32;
    for _ in 0..rounds {
        let mut token = good.clone();
        // Half of them keep the shape, because only the signature is touched.
        let in_signature = random(2) == 0;
        for _ in 0..=random(3) {
            let letter = ALPHABET[random(64)];
            if in_signature {
                let at = token.len() - 1 - random(43);
                token[at] = letter;
                continue;
            }
            let at = random(token.len());
            match random(4) {
                0 if token.len() > 1 => drop(token.remove(at)),
                1 => token.insert(at, ALPHABET[random(ALPHABET.len())]),
                2 => token.truncate(at.max(1)),
                _ => token[at] = letter,
            }
        }
        if token == good {
            continue;
        }
        let token = String::from_utf8(token).unwrap();
        match check(&token) {
            Ok(_) => panic!("seed {seed}: {token} was believed"),
            Err(TokenError::Malformed) => {}
            Err(_) => past_the_shape += 1,
        }
    }
    let share = f64::from(past_the_shape) / f64::from(rounds);
    println!("seed {seed}: {rounds} tokens, {:.1} % of the right shape", share * 100.0);
    assert!(share >= 0.3, "the mutations never reach the signature");
}
