// Package dev runs authsession -dev: it starts what the service needs and stands in for the rest of the platform.
//
// It has an embedded Redis, a key of its own with its key set, POST /token and POST /end-users, and the sandbox, which
// plays the consent page. The service knows none of it, because Wrap stands in front of the service's handler.
package dev

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"authsession/internal/bearer"
	"authsession/internal/config"
	"authsession/internal/keytool"

	"github.com/alicebob/miniredis/v2"
	"github.com/go-json-experiment/json"
)

// Dev is a development environment for one service.
type Dev struct {
	Config config.Config // the environment's variables, completed with what Start has started

	stdout   io.Writer
	log      *slog.Logger
	key      keytool.Key
	verifier *bearer.Verifier // of tokens for POST /end-users
	redis    string           // address, as printed
	page     net.Listener     // the sandbox's; nil if AUTH_URL is set
	pageURL  string           // of the sandbox
	cleanups []func()         // run in reverse order by Stop
}

// Start starts what the variables do not name: an embedded Redis without REDIS_URL, the sandbox's listener without
// AUTH_URL, and always a key, so JWKS_URL must not be set. Call Stop after an error, too.
func Start(getenv func(string) string, stdout, stderr io.Writer) (*Dev, error) {
	fmt.Fprintln(stdout, "authsession -dev starts the service with all it needs, for development only.")
	d := &Dev{stdout: stdout, redis: "as REDIS_URL says"}
	if getenv("JWKS_URL") != "" {
		return d, errors.New("-dev makes its own key and does not run with JWKS_URL set")
	}
	keySet, err := os.CreateTemp("", "authsession-dev-*.json")
	if err != nil {
		return d, fmt.Errorf("creating the key set's file: %w", err)
	}
	d.cleanup(func() { _, _ = keySet.Close(), os.Remove(keySet.Name()) })
	defaults := map[string]string{"ADDR": "127.0.0.1:8080", "JWKS_URL": "file://" + keySet.Name(),
		"JWT_ISSUER": "authsession-dev", "JWT_AUDIENCE": "authsession-dev"} // without, the service warns
	if getenv("REDIS_URL") == "" {
		embedded := miniredis.NewMiniRedis()
		embedded.ClockTTL(true) // keys expire by the machine's clock; slow with thousands of keys: each command checks all
		if err := embedded.StartAddr("127.0.0.1:0"); err != nil {
			return d, fmt.Errorf("starting the embedded redis: %w", err)
		}
		d.cleanup(embedded.Close)
		d.redis = embedded.Addr()
		defaults["REDIS_URL"] = "redis://" + d.redis
	}
	if getenv("AUTH_URL") == "" {
		if d.page, err = listenAfter(cmp.Or(getenv("ADDR"), defaults["ADDR"]), getenv("METRICS_ADDR")); err != nil {
			return d, fmt.Errorf("listening for the sandbox: %w", err)
		}
		d.cleanup(func() { _ = d.page.Close() })
		_, port, _ := net.SplitHostPort(d.page.Addr().String())
		d.pageURL = "http://localhost:" + port + "/" // no address, so that pages of localhost that frame it are same-site
		defaults["AUTH_URL"] = d.pageURL
	}
	d.Config, err = config.Load(func(name string) string { return cmp.Or(getenv(name), defaults[name]) })
	if err != nil {
		return d, err
	}
	d.log = slog.New(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: d.Config.LogLevel}))
	return d, d.makeKey(keySet)
}

// makeKey makes the key, writes its key set to w, the file that JWKS_URL names, and starts the verifier.
func (d *Dev) makeKey(w io.Writer) (err error) {
	algorithms := d.Config.Tokens.Algorithms
	if d.key, err = keytool.Generate(algorithms[len(algorithms)-1]); err != nil {
		return err
	}
	set, err := d.key.Set()
	if err == nil {
		_, err = w.Write(set)
	}
	if err != nil {
		return fmt.Errorf("writing the key set: %w", err)
	}
	d.verifier = bearer.New(d.Config.Tokens, slog.New(slog.DiscardHandler)) // discards, because the service's own logs
	ctx, cancel := context.WithCancel(context.Background())
	d.cleanup(cancel)
	go d.verifier.Run(ctx)
	return d.verifier.WaitReady(ctx)
}

func (d *Dev) cleanup(f func()) { d.cleanups = append(d.cleanups, f) }

// Stop ends what Start and Wrap have started.
func (d *Dev) Stop() {
	for _, f := range slices.Backward(d.cleanups) {
		f()
	}
}

// Wrap returns service with the platform's paths in front of it. It is called once, when the service listens on addr:
// it starts the sandbox and prints how to use it all.
func (d *Dev) Wrap(addr net.Addr, service http.Handler) (http.Handler, error) {
	api := "http://" + strings.Replace(addr.String(), "[::]", "127.0.0.1", 1) // [::] is all addresses
	token, err := d.issue("dev", 24*time.Hour)
	if err != nil {
		return nil, fmt.Errorf("making a token: %w", err)
	}
	consentPage, body := "as AUTH_URL says", exampleBody("https://acme.com/")
	if d.page != nil {
		consentPage, body = "a sandbox, "+d.pageURL+" (it creates sessions, too)", exampleBody(d.pageURL)
		service = d.serveSandbox(api, token, service)
	}
	_, err = fmt.Fprintf(d.stdout, `Service: %s
Redis: %s
Platform: POST /token (any client_id and client_secret) and POST /end-users stand in for it
Consent page: %s

curl -sS -X POST %s/auth/session \
  -H 'Authorization: Bearer %s' \
  -H 'Content-Type: application/json' \
  -d '%s'

`, api, d.redis, consentPage, api, token, body)
	return d.platform(service), err
}

// issue returns a token of client that the service accepts for lifetime, or for JWT_MAX_LIFETIME if that is shorter.
func (d *Dev) issue(client string, lifetime time.Duration) (string, error) {
	c := d.Config.Tokens
	claims := map[string]string{c.ScopeClaims[0]: bearer.Scope, "iss": c.Issuer, "aud": c.Audience}
	name := c.ClientClaims[0]
	claims[name] = cmp.Or(claims[name], client)
	return d.key.Issue(min(lifetime, c.MaxLifetime), claims)
}

// serveSandbox starts the sandbox, with a Redis client of its own, and returns service observed by it.
func (d *Dev) serveSandbox(api, token string, service http.Handler) http.Handler {
	client := d.Config.Redis.Open(d.Config.StoreTimeout)
	s := &sandbox{redis: client, keyPrefix: d.Config.KeyPrefix, log: d.log,
		url: d.pageURL, api: api, token: token, formKey: []byte(rand.Text())}
	srv := &http.Server{
		Handler:      s.routes(),
		ReadTimeout:  10 * time.Second,
		WriteTimeout: 30*time.Second + d.Config.StoreTimeout,
		ErrorLog:     slog.NewLogLogger(d.log.Handler(), slog.LevelWarn),
	}
	go func() { _ = srv.Serve(d.page) }()
	d.cleanup(func() { _, _ = srv.Close(), client.Close() })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { service.ServeHTTP(observer{w, s}, r) })
}

// listenAfter listens on 127.0.0.1, on the first free of the two ports after addr's, or else on any port. It leaves the
// port of reserved alone.
func listenAfter(addr, reserved string) (net.Listener, error) {
	_, text, _ := net.SplitHostPort(addr)
	port, _ := strconv.Atoi(text)
	for i := 1; i <= 2 && port > 0; i++ { // port 0 is any port
		next := ":" + strconv.Itoa(port+i)
		if strings.HasSuffix(reserved, next) {
			continue
		}
		if l, err := net.Listen("tcp", "127.0.0.1"+next); err == nil {
			return l, nil
		}
	}
	return net.Listen("tcp", "127.0.0.1:0")
}

// platform answers the two paths of the reference platform that a backend calls before POST /auth/session, so that the
// backend runs with only its base URL changed. Every other request goes to service.
func (d *Dev) platform(service http.Handler) http.Handler {
	handlers := map[string]http.HandlerFunc{"/token": d.createToken, "/end-users": d.createEndUser}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handle, found := handlers[strings.TrimPrefix(r.URL.EscapedPath(), "/v1")]
		if !found {
			service.ServeHTTP(w, r)
			return
		}
		h := w.Header()
		h.Set("X-Request-Id", rand.Text())
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Content-Type", "application/json")
		if r.Method != http.MethodPost {
			h.Set("Allow", http.MethodPost)
			refuse(w, http.StatusMethodNotAllowed, "method_not_allowed", "this path takes POST")
			return
		}
		handle(w, r)
	})
}

// refuse answers with an error in the service's format.
func refuse(w http.ResponseWriter, status int, name, message string) {
	h := w.Header()
	h.Set("Content-Type", "application/vnd.goa.error")
	h.Set("Goa-Error", name)
	w.WriteHeader(status)
	_, _ = io.WriteString(w, encode(map[string]any{"name": name, "id": rand.Text(), "message": message,
		"fault": status == http.StatusInternalServerError, "temporary": false, "timeout": false}))
}

// encode returns v as a line of JSON. v has only maps and slices of strings, bools and ints, which never fail.
func encode(v any) string {
	text, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		panic(err)
	}
	return string(text) + "\n"
}

// createToken is POST /token: it returns a token for any client_id and client_secret.
func (d *Dev) createToken(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64<<10))
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		refuse(w, http.StatusRequestEntityTooLarge, "request_too_large", "the body must be at most 65536 bytes")
		return
	}
	id, secret := clientCredentials(r, body)
	unprintable := func(c rune) bool { return c <= ' ' || c > '~' }
	if id == "" || len(id) > 128 || strings.ContainsFunc(id, unprintable) || secret == "" {
		refuse(w, http.StatusBadRequest, "bad_request", "client_id (at most 128 printable ASCII characters, no space) "+
			"and client_secret are required: as JSON, as a form, or by HTTP Basic")
		return
	}
	lifetime := min(15*time.Minute, d.Config.Tokens.MaxLifetime)
	token, err := d.issue(id, lifetime)
	if err != nil {
		refuse(w, http.StatusInternalServerError, "fault", err.Error())
		return
	}
	_, _ = io.WriteString(w, encode(map[string]any{"token": token, "access_token": token, "token_type": "Bearer",
		"expires_in": int(lifetime.Seconds())}))
}

// clientCredentials reads the client's ID and secret from HTTP Basic (RFC 6749, section 2.3.1), or from body: JSON or a
// form. It returns "" for what is absent or malformed. It ignores Content-Type, because curl -d sends JSON as a form.
func clientCredentials(r *http.Request, body []byte) (id, secret string) {
	if user, password, ok := r.BasicAuth(); ok {
		id, _ = url.QueryUnescape(user)
		secret, _ = url.QueryUnescape(password)
		return id, secret
	}
	if bytes.HasPrefix(bytes.TrimSpace(body), []byte("{")) {
		var client struct {
			ID     string `json:"client_id"`
			Secret string `json:"client_secret"`
		}
		if err := json.Unmarshal(body, &client); err != nil {
			return "", ""
		}
		return client.ID, client.Secret
	}
	form, _ := url.ParseQuery(string(body))
	return form.Get("client_id"), form.Get("client_secret")
}

// createEndUser is POST /end-users: it returns a new end user's ID to a caller with a valid token, and stores nothing.
func (d *Dev) createEndUser(w http.ResponseWriter, r *http.Request) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	challenge, err := "Bearer", errors.New("no bearer token") // error= only if there is a token: RFC 6750, section 3.1
	if token != "" && strings.EqualFold(scheme, "Bearer") {
		challenge = `Bearer error="invalid_token"`
		_, err = d.verifier.Verify(token)
	}
	if err != nil {
		d.log.Info("POST /end-users refused a token", "cause", err.Error())
		w.Header().Set("WWW-Authenticate", challenge)
		refuse(w, http.StatusUnauthorized, "unauthorized", "send a valid bearer token in the Authorization header")
		return
	}
	id := "eu_2" + rand.Text() // 27 letters and digits after eu_, as a KSUID of these years
	_, _ = io.WriteString(w, encode(map[string]any{"end_user_id": id, "id": id}))
}
