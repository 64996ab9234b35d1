package bearer_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"authsession/internal/bearer"
	"authsession/internal/keytool"
	"authsession/internal/testkit"

	"github.com/go-jose/go-jose/v4"
)

// keyServer is a transport that answers fetches of the key set. It has no network, so that it runs in a bubble, where
// the clock moves only while all goroutines wait.
type keyServer struct {
	begin time.Time

	mu      sync.Mutex
	answer  answer
	fetches []time.Duration // since begin
	hosts   []string
}

type answer func(*http.Request) (*http.Response, error)

func (ks *keyServer) RoundTrip(r *http.Request) (*http.Response, error) {
	ks.mu.Lock()
	ks.fetches = append(ks.fetches, time.Since(ks.begin))
	ks.hosts = append(ks.hosts, r.URL.Host)
	answer := ks.answer
	ks.mu.Unlock()
	return answer(r)
}

// set changes the answer to later fetches.
func (ks *keyServer) set(a answer) {
	ks.mu.Lock()
	defer ks.mu.Unlock()
	ks.answer = a
}

// until waits until so many seconds after the start.
func (ks *keyServer) until(seconds float64) {
	time.Sleep(time.Until(ks.begin.Add(duration(seconds))))
	synctest.Wait()
}

// checkFetches checks when the set was fetched, in seconds after the start.
func (ks *keyServer) checkFetches(t *testing.T, seconds ...float64) {
	t.Helper()
	var want []time.Duration
	for _, s := range seconds {
		want = append(want, duration(s))
	}
	ks.mu.Lock()
	defer ks.mu.Unlock()
	if !slices.Equal(ks.fetches, want) {
		t.Errorf("fetches after %s, want %s", ks.fetches, want)
	}
}

func duration(seconds float64) time.Duration { return time.Duration(seconds * float64(time.Second)) }

// serve answers with a status and a text.
func serve(status int, text string) answer {
	return func(r *http.Request) (*http.Response, error) {
		w := httptest.NewRecorder()
		w.Header().Set("Location", "https://other.example/keys")
		w.WriteHeader(status)
		_, _ = w.WriteString(text)
		return w.Result(), nil
	}
}

// serveKeys answers with a set of these keys after some seconds.
func serveKeys(t testing.TB, seconds float64, keys ...keytool.Key) answer {
	t.Helper()
	var public []any
	for _, k := range keys {
		public = append(public, k.Public())
	}
	text := keySetJSON(t, public...)
	return func(r *http.Request) (*http.Response, error) {
		time.Sleep(duration(seconds))
		return serve(200, text)(r)
	}
}

// hang answers nothing until the fetch is given up.
func hang(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// withKeyServer runs a test in a bubble, with a Verifier that fetches its key set from ks.
func withKeyServer(t *testing.T, first answer, test func(t *testing.T, v verifier, ks *keyServer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ks := &keyServer{begin: time.Now(), answer: first}
		u, err := url.Parse("https://us:SECRET@auth.example/keys?token=SECRET")
		testkit.Must(t, err)
		v := newVerifier(config(u))
		v.SetTransport(ks)
		go v.Run(t.Context())
		synctest.Wait()
		test(t, v, ks)
		if v.log.Has("SECRET") {
			t.Errorf("the log has a credential of the key set's URL: %s", v.log)
		}
	})
}

// checkAfter checks the error of Verify for a token by k, and after how many seconds it returns.
func (v verifier) checkAfter(t *testing.T, k keytool.Key, wantErr string, seconds float64) {
	t.Helper()
	token, start := sign(t, k), time.Now()
	_, err := v.Verify(token)
	if d := time.Since(start); errorText(err) != wantErr || d != duration(seconds) {
		t.Errorf("Verify of a token by key %q = %v after %s, want %q after %g s", k.ID, err, d, wantErr, seconds)
	}
}

func (v verifier) checkStatus(t *testing.T, wantSuccess time.Time) {
	t.Helper()
	if last := v.KeySetLastSuccess(); last != wantSuccess.Unix() {
		t.Errorf("KeySetLastSuccess() = %d, want %d", last, wantSuccess.Unix())
	}
}

func TestVerifierRunSchedule(t *testing.T) {
	ec := testkit.EC()
	withKeyServer(t, serve(500, ""), func(t *testing.T, v verifier, ks *keyServer) {
		ks.until(120)
		ks.checkFetches(t, 0, 1, 3, 7, 15, 31, 61, 91)
		v.checkAfter(t, ec, bearer.ErrNoKeys.Error(), 0)
		v.checkAfter(t, newES256(t, "unknown"), bearer.ErrNoKeys.Error(), 0)
		v.check(t, verifyTest{name: "no key needed", token: "a.b.c", wantErr: "header is not base64url"})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		if err := v.WaitReady(ctx); err != context.DeadlineExceeded || v.Ready() {
			t.Errorf("WaitReady() = %v, Ready() = %t without a key set", err, v.Ready())
		}
		v.checkStatus(t, time.Unix(0, 0))

		ks.set(serveKeys(t, 0, ec))
		testkit.Must(t, v.WaitReady(t.Context()))
		v.checkStatus(t, ks.begin.Add(121*time.Second))
		v.checkAfter(t, ec, accepted, 0)
		ks.until(1321)
		ks.set(serve(500, ""))
		ks.until(3000)
		ks.checkFetches(t, 0, 1, 3, 7, 15, 31, 61, 91, 121, 721, 1321, 1921, 2521)
		v.checkAfter(t, ec, accepted, 0)
		v.checkStatus(t, ks.begin.Add(1321*time.Second))
		ks.set(serveKeys(t, 0, ec))
		ks.until(3121)
		v.checkStatus(t, ks.begin.Add(3121*time.Second))
		// A failure is logged once while it lasts, and an unchanged set is not logged again.
		if n := strings.Count(v.log.String(), "fetching key set failed"); n != 2 || !v.Ready() {
			t.Errorf("%d log lines of failed fetches, want one for each time", n)
		}
		if n := strings.Count(v.log.String(), "key set loaded"); n != 1 {
			t.Errorf("%d log lines of loaded sets, want 1", n)
		}
	})
}

// TestVerifierVerifyUnknownKey has unknown key IDs, which cause one fetch in 30 s and wait for it for 1 s.
func TestVerifierVerifyUnknownKey(t *testing.T) {
	ec, late, unknown := testkit.EC(), newES256(t, "late"), newES256(t, "unknown")
	withKeyServer(t, serveKeys(t, 0, ec), func(t *testing.T, v verifier, ks *keyServer) {
		ks.until(1)
		v.check(t, []verifyTest{ // None of these causes a fetch.
			{name: "another key", token: sign(t, newES256(t, "ec")), wantErr: badSignature},
			{name: "another algorithm", token: sign(t, testkit.NewKey(t, "ec", jose.EdDSA)), wantErr: noKey},
			{name: "no kid", token: raw(t, testkit.Ed(), `{"alg":"EdDSA"}`, payload(t, "")), wantErr: noKey},
			{name: "algorithm not allowed", token: hs256(`{"alg":"HS256","kid":"x"}`, `{}`, nil), wantErr: malformed},
			{name: "no signature", token: b64(`{"alg":"none","kid":"x"}`) + ".e30.", wantErr: malformed},
		}...)
		ks.checkFetches(t, 0)
		ks.set(serveKeys(t, 5, ec))
		var callers sync.WaitGroup
		callers.Go(func() { v.checkAfter(t, unknown, noKey, 1) })
		ks.until(1.4)
		callers.Go(func() { v.checkAfter(t, late, noKey, 0.6) })
		callers.Go(func() { v.checkAfter(t, ec, accepted, 0) })
		callers.Wait()
		for i := range 200 {
			v.checkAfter(t, keytool.Key{ID: fmt.Sprint(i), Algorithm: jose.ES256, Private: ec.Private}, noKey, 0)
		}
		ks.until(30.999)
		v.checkAfter(t, late, noKey, 0)
		ks.checkFetches(t, 0, 1)
		ks.set(serveKeys(t, 0.3, ec, late))
		ks.until(31)
		for range 20 {
			callers.Go(func() { v.checkAfter(t, late, accepted, 0.3) })
		}
		callers.Wait()
		v.checkAfter(t, unknown, noKey, 0)
		ks.until(640)
		ks.checkFetches(t, 0, 1, 31, 631.3)
	})
	withKeyServer(t, serveKeys(t, 0, ec), func(t *testing.T, v verifier, ks *keyServer) {
		ks.until(599)
		ks.set(serveKeys(t, 0.4, ec))
		ks.until(600.2)
		ks.set(serveKeys(t, 3, ec, late)) // The regular fetch has begun, so it gets the old set.
		v.checkAfter(t, late, noKey, 1)
		ks.until(605)
		v.checkAfter(t, late, accepted, 0)
		ks.checkFetches(t, 0, 600, 600.4)
	})
}

// TestVerifierVerifyAfterRun checks that Verify waits for no more than 1 s if Run has ended.
func TestVerifierVerifyAfterRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVerifier(config(ourKeys(t)))
		ctx, stop := context.WithCancel(t.Context())
		go v.Run(ctx)
		testkit.Must(t, v.WaitReady(ctx))
		stop()
		for range 3 {
			time.Sleep(30 * time.Second)
			v.checkAfter(t, newES256(t, "unknown"), noKey, 1)
		}
	})
}

// TestVerifierRunBadSet has bad answers of the key server, which never take the last good set away.
func TestVerifierRunBadSet(t *testing.T) {
	good, thief := newES256(t, "good"), newES256(t, "thief")
	set := keySetJSON(t, thief.Public())
	padded := func(size int) string { return set + strings.Repeat(" ", size-len(set)) }
	const notSet, unusable, tooBig = "not a JSON Web Key Set", "no usable key in the set", "more than 1048576 bytes"
	for _, tt := range []struct {
		name      string
		answer    answer
		wantCause string
	}{
		{name: "500", answer: serve(500, set), wantCause: "status 500"},
		{name: "redirect", answer: serve(302, set), wantCause: "status 302"},
		{name: "no connection", answer: func(*http.Request) (*http.Response, error) { return nil, errors.New("refused") },
			wantCause: "refused"},
		{name: "no answer", answer: hang, wantCause: "context deadline exceeded"},
		{name: "body cut", wantCause: "unexpected EOF", answer: func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Body: io.NopCloser(iotest.ErrReader(io.ErrUnexpectedEOF))}, nil
		}},
		{name: "1 MiB and one", answer: serve(200, padded(1<<20+1)), wantCause: tooBig},
		{name: "HTML", answer: serve(200, "<!DOCTYPE html><title>Sign in</title>"), wantCause: notSet},
		{name: "nothing", answer: serve(200, ""), wantCause: notSet},
		{name: "no keys", answer: serve(200, `{"keys":[]}`), wantCause: unusable},
		{name: "no key that fits", answer: serveKeys(t, 0, testkit.NewKey(t, "p521", jose.ES512)),
			wantCause: unusable + `; "p521": its type, size, alg and use fit none of JWT_ALGORITHMS`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			withKeyServer(t, serveKeys(t, 0, good), func(t *testing.T, v verifier, ks *keyServer) {
				ks.set(tt.answer)
				ks.until(606)
				line := v.log.Line(t, "msg", "fetching key set failed")
				if cause, _ := line["cause"].(string); !strings.HasPrefix(cause, tt.wantCause) || line["loaded"] != true {
					t.Errorf("log line %v, want the cause %q and loaded", line, tt.wantCause)
				}
				v.checkStatus(t, ks.begin)
				v.checkAfter(t, good, accepted, 0)
				ks.set(serve(200, padded(1<<20)))
				time.Sleep(time.Hour)
				v.checkAfter(t, thief, accepted, 0)
				v.checkAfter(t, good, noKey, 0)
				if slices.Contains(ks.hosts, "other.example") {
					t.Error("the redirect was followed")
				}
			})
		})
	}
}

func TestVerifierRunFile(t *testing.T) {
	before, after := newES256(t, "before"), newES256(t, "after")
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "keys.json")
		v := newVerifier(config(&url.URL{Scheme: "file", Path: file}))
		go v.Run(t.Context())
		time.Sleep(10 * time.Second)
		old, token := sign(t, before), sign(t, after)
		v.check(t, verifyTest{name: "no file", token: old, wantErr: bearer.ErrNoKeys.Error()})
		for _, step := range []struct {
			name             string
			change           func()
			wantOld, wantNew string
		}{
			{name: "written", change: func() { testkit.WriteKeySet(t, file, before) }, wantNew: noKey},
			{name: "rotated", change: func() { testkit.WriteKeySet(t, file, before, after) }},
			{name: "old key removed", change: func() { testkit.WriteKeySet(t, file, after) }, wantOld: noKey},
			{name: "file removed", change: func() { testkit.Must(t, os.Remove(file)) }, wantOld: noKey},
			{name: "another key with the kid", wantOld: noKey, wantNew: badSignature,
				change: func() { testkit.WriteKeySet(t, file, newES256(t, "after")) }},
		} {
			step.change()
			time.Sleep(30 * time.Second) // At most one unknown kid in this time fetches the set.
			v.check(t, []verifyTest{
				{name: step.name + ", old key", token: old, wantErr: step.wantOld},
				{name: step.name + ", new key", token: token, wantErr: step.wantNew},
			}...)
		}
	})
}

// TestVerifierRunHTTP rotates keys over a network.
func TestVerifierRunHTTP(t *testing.T) {
	before, after, dir := newES256(t, "before"), newES256(t, "after"), t.TempDir()
	file := filepath.Join(dir, "keys.json")
	testkit.WriteKeySet(t, file, before)
	server := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer server.Close()
	u, err := url.Parse(server.URL + "/keys.json")
	testkit.Must(t, err)
	v := newVerifier(config(u)).start(t)
	old, token := sign(t, before), sign(t, after)
	v.check(t, verifyTest{name: "before the rotation", token: old, wantErr: accepted})
	testkit.WriteKeySet(t, file, before, after)
	testkit.WaitFor(t, 30*time.Second, "the new key", func() bool { _, err := v.Verify(token); return err == nil })
	v.check(t, verifyTest{name: "after the rotation", token: old, wantErr: accepted})
}

// certificate returns a certificate in DER whose serial number is 1 or -1, which crypto/x509 cannot parse.
func certificate(t testing.TB, serial int8) []byte {
	t.Helper()
	key := testkit.EC().Private
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	testkit.Must(t, err)
	const integer, length = 2, 1
	return bytes.Replace(der, []byte{integer, length, 1}, []byte{integer, length, byte(serial)}, 1)
}

// TestVerifierRunKeys has keys with restrictions, and those that are skipped with their reasons in the log.
func TestVerifierRunKeys(t *testing.T) {
	rs, other := testkit.RSA(), newES256(t, "other")
	as := func(k keytool.Key, id string, alg jose.SignatureAlgorithm) keytool.Key {
		return keytool.Key{ID: id, Algorithm: alg, Private: k.Private}
	}
	entry := func(k keytool.Key, id string, changes map[string]any) map[string]any {
		k.ID = id
		members := map[string]any{}
		testkit.Must(t, json.Unmarshal([]byte(asJSON(t, k.Public())), &members))
		maps.Copy(members, changes)
		return members
	}
	rsaEntry := func(id string, bits int) any {
		n := make([]byte, (bits+7)/8)
		n[0], n[len(n)-1] = 1<<((bits-1)%8), 1
		return map[string]any{"kty": "RSA", "kid": id, "n": b64(n), "e": "AQAB"}
	}
	secret, long := bytes.Repeat([]byte("s"), 32), strings.Repeat("x", 99)
	point := func(id, crv string) any {
		return map[string]any{"kty": "EC", "kid": id, "crv": crv, "x": b64(secret), "y": b64(secret)}
	}
	const notObject, notPublic = "must be one JSON object", "not a public key"
	const noFit, noOps = "its type, size, alg and use fit none of JWT_ALGORITHMS", "key_ops lacks verify"
	const unsupported = `"unsupported key type, format, curve, or RSA modulus size"`
	notText := func(kind string) string { return `"json: cannot unmarshal ` + kind + ` into Go value of type string"` }
	ec, none := testkit.EC(), map[string]any{"alg": "", "use": ""}
	keys := []any{
		entry(rs, "free", none), entry(as(rs, "", jose.PS256), "ps", nil), entry(other, "other", none),
		entry(ec, "double", nil), entry(rs, "double", none), entry(other, "double", none),
		entry(ec, "ops", map[string]any{"key_ops": []string{"sign", "verify"}}),
		rsaEntry("rsa-2048", 2048), rsaEntry("rsa-8192", 8192),
	}
	der := certificate(t, 1)
	text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	odd := []map[string]any{ // A key's certificate is not read, and null is absent.
		{"x5c": []any{base64.StdEncoding.EncodeToString(certificate(t, -1))}},
		{"x5c": []any{base64.StdEncoding.EncodeToString(der)}}, {"x5c": []any{b64(der)}}, {"x5c": []any{text}},
		{"x5c": []any{}}, {"x5c": []any{"?", 5, nil}}, {"x5c": "MII"}, {"x5c": nil},
		{"x5t": b64("four"), "x5t#S256": b64("four")}, {"x5t": "MQ==", "x5t#S256": "+/=="}, {"x5t": 5, "x5t#S256": nil},
		{"x5u": "%zz"}, {"x5u": 5}, {"d": nil, "k": nil, "p": 5, "pub": 5, "oth": 5, "ext": true},
		{"key_ops": nil}, {"use": nil}, {"alg": nil}, {"alg": nil, "use": nil, "key_ops": nil, "x5c": nil, "x5u": nil},
	}
	for i, members := range odd {
		keys = append(keys, entry(rs, fmt.Sprint("odd-", i), members))
	}
	loaded := float64(len(keys))
	var wantSkipped []any
	for _, tt := range []struct {
		key  any
		want string // the log's text
	}{
		{key: nil, want: `"": ` + notObject},
		{key: json.RawMessage(`{"kid":"a","kid":"b"}`), want: `"a": must not give a member name twice in one object`},
		{key: map[string]any{}, want: `"": "missing json web key type"`},
		{key: map[string]any{"kty": "new", "kid": "good"}, want: `"good": ` + unsupported},
		{key: map[string]any{"kid": 5}, want: `"": ` + notText("number")},
		{key: map[string]any{"kty": "new", "kid": "\n" + long}, want: `"\n` + long[:63] + `": ` + unsupported},
		{key: point("off-curve", "P-256"), want: `"off-curve": "invalid EC key, X/Y are not on declared curve"`},
		{key: point("k1", "secp256k1"), want: `"k1": ` + unsupported},
		{key: rsaEntry("rsa-2047", 2047), want: `"rsa-2047": ` + noFit},
		{key: rsaEntry("rsa-8193", 8193), want: `"rsa-8193": ` + unsupported},
		{key: map[string]any{"kty": "oct", "kid": "oct", "k": b64(secret)}, want: `"oct": ` + notPublic},
		{key: jose.JSONWebKey{Key: ec.Private, KeyID: "private"}, want: `"private": ` + notPublic},
		{key: entry(rs, "d", map[string]any{"d": "AQ"}), want: `"d": ` + notPublic},
		{key: entry(rs, "empty-d", map[string]any{"d": ""}), want: `"empty-d": ` + notPublic},
		{key: entry(ec, "enc", map[string]any{"use": "enc"}), want: `"enc": ` + noFit},
		{key: entry(ec, "use", map[string]any{"use": []string{"sig"}}), want: `"use": ` + notText("array")},
		{key: entry(ec, "alg", map[string]any{"alg": 5}), want: `"alg": ` + notText("number")},
		{key: entry(testkit.Ed(), "448", map[string]any{"alg": "Ed448"}), want: `"448": ` + noFit},
		{key: entry(testkit.Ed(), "case", map[string]any{"alg": "ed25519"}), want: `"case": ` + noFit},
		{key: entry(ec, "ec-ed", map[string]any{"alg": "Ed25519"}), want: `"ec-ed": ` + noFit},
		{key: entry(ec, "ec-rs", map[string]any{"alg": "RS256"}), want: `"ec-rs": ` + noFit},
		{key: testkit.NewKey(t, "p384", jose.ES384).Public(), want: `"p384": ` + noFit},
		{key: entry(ec, "ops-sign", map[string]any{"key_ops": []string{"sign"}}), want: `"ops-sign": ` + noOps},
		{key: entry(ec, "ops-none", map[string]any{"key_ops": []string{}}), want: `"ops-none": ` + noOps},
	} {
		keys, wantSkipped = append(keys, tt.key), append(wantSkipped, tt.want)
	}
	v := newVerifier(config(keyFile(t, keys...))).start(t)
	line := v.log.Line(t, "msg", "key set loaded")
	if got, _ := line["skipped"].([]any); line["keys"] != loaded || !slices.Equal(got, wantSkipped) {
		t.Errorf("log has %v keys and skipped %q, want %v and %q", line["keys"], got, loaded, wantSkipped)
	}
	v.check(t, []verifyTest{
		{name: "key without alg, PS256", token: sign(t, as(rs, "free", jose.PS256)), wantErr: accepted},
		{name: "key for PS256", token: sign(t, as(rs, "ps", jose.PS256)), wantErr: accepted},
		{name: "key for PS256, RS256", token: sign(t, as(rs, "ps", jose.RS256)), wantErr: noKey},
		{name: "kid of three keys, first", token: sign(t, as(ec, "double", jose.ES256)), wantErr: accepted},
		{name: "kid of three keys, last", token: sign(t, as(other, "double", jose.ES256)), wantErr: accepted},
		{name: "kid of three keys, none", token: sign(t, newES256(t, "double")), wantErr: badSignature},
		{name: "key_ops with verify", token: sign(t, as(ec, "ops", jose.ES256)), wantErr: accepted},
		{name: "private key", token: sign(t, as(ec, "private", jose.ES256)), wantErr: noKey},
		{name: "symmetric key", token: hs256(`{"alg":"ES256","kid":"oct"}`, payload(t, ""), secret), wantErr: noKey},
	}...)
	for i, members := range odd {
		token := sign(t, as(rs, fmt.Sprint("odd-", i), jose.RS256))
		v.check(t, verifyTest{name: asJSON(t, members), token: token, wantErr: accepted})
	}
	// The log names some of many skipped keys.
	v = newVerifier(config(keyFile(t, append(make([]any, 10_000), ec.Public())...))).start(t)
	if n := len(v.log.String()); n > 10<<10 {
		t.Errorf("the log has %d bytes about 10,000 skipped keys", n)
	}
}

func TestVerifierVerifyWithoutKeyID(t *testing.T) {
	one, rs, ps := newES256(t, ""), testkit.NewKey(t, "", jose.RS256), testkit.NewKey(t, "", jose.PS256)
	ed1, ed2 := testkit.NewKey(t, "ed1", jose.EdDSA), testkit.NewKey(t, "ed2", jose.EdDSA)
	v := newVerifier(config(keyFile(t,
		one.Public(), rs.Public(), ps.Public(), ed1.Public(), ed2.Public(),
	))).start(t)
	v.check(t, []verifyTest{
		{name: "one key, no kid", token: raw(t, one, `{"alg":"ES256"}`, payload(t, "")), wantErr: accepted},
		{name: "one key, kid empty", token: sign(t, one), wantErr: accepted},
		{name: "RSA key for PS256", token: sign(t, ps), wantErr: accepted},
		{name: "two keys, no kid", token: raw(t, ed1, `{"alg":"EdDSA"}`, payload(t, "")), wantErr: noKey},
		{name: "two keys, kid", token: sign(t, ed2), wantErr: accepted},
	}...)
}
