// Authsession serves POST /auth/session of an open-banking platform: it checks a
// partner's bearer token and JSON, writes a short-lived session record to Redis, and
// answers with the URL to send the end user to.
//
// Usage:
//
//	authsession              serve, set up by environment variables (see README.md)
//	authsession -dev         serve with nothing set up: an embedded Redis, a throw-away key, a sandbox consent page
//	authsession healthcheck  ask the running service's /readyz; exit status 0 or 1
//	authsession keygen       write a private key to a file, print its key set
//	authsession token        print a token by such a key
//	authsession -version     print the version
//
// A request comes in at routes (handlers.go); its token goes to token.go and jwks.go,
// its body to body.go and session.go, its record to store.go, its failure to errors.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400) // the live heap is a few MB: collect it less often
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	if err := run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr); err != nil && !errors.Is(err, flag.ErrHelp) {
		slog.New(slog.NewJSONHandler(os.Stderr, nil)).Error("authsession failed", "cause", err.Error())
		os.Exit(1)
	}
}

const usage = `Without arguments authsession serves, set up by environment variables (see README.md).

  healthcheck
    	ask the running service's /readyz; exit status 0 or 1
  keygen
    	write a private key to a file, print its key set (more: authsession keygen -h)
  token
    	print a token by such a key (more: authsession token -h)`

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("authsession", flag.ContinueOnError)
	flags.SetOutput(stderr)
	version := flags.Bool("version", false, "print the version")
	dev := flags.Bool("dev", false, "serve with nothing set up: an embedded Redis, a throw-away key, a sandbox consent page")
	flags.Usage = func() {
		fmt.Fprintln(stderr, usage)
		flags.PrintDefaults()
	}
	err := flags.Parse(args)
	switch {
	case err != nil:
		return err
	case *version:
		_, err := fmt.Fprintln(stdout, versionText())
		return err
	case flags.NArg() == 1 && flags.Arg(0) == "healthcheck":
		return healthcheck(ctx, getenv)
	case flags.Arg(0) == "keygen":
		return keygen(flags.Args()[1:], stdout, stderr)
	case flags.Arg(0) == "token":
		return printToken(flags.Args()[1:], stdout, stderr)
	case flags.NArg() > 0:
		return errors.New("the arguments may be one of: healthcheck, keygen, token, -dev, -version")
	case *dev:
		return runDev(ctx, getenv, stdout, stderr)
	}
	cfg, err := loadConfig(getenv)
	if err != nil {
		return err
	}
	return serve(ctx, cfg, stderr, func(net.Addr) error { return nil })
}

// Time limits of a connection. A request's body has until readTimeout from the
// request's first byte on.
const (
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 10 * time.Second
	writeSlack        = 5 * time.Second // for an answer on its way
	idleTimeout       = 2 * time.Minute // longer than gateways keep theirs
)

func newHTTPServer(h http.Handler, storeTimeout time.Duration, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:                      h,
		ReadHeaderTimeout:            readHeaderTimeout,
		ReadTimeout:                  readTimeout,
		WriteTimeout:                 readTimeout + unknownWait + storeTimeout + writeSlack,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               24 << 10, // net/http adds 4 KiB; a token has 8
		ErrorLog:                     slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		DisableGeneralOptionsHandler: true, // OPTIONS * is 404 like any other path
	}
}

// serve runs the service until ctx ends, and then until the requests in flight have
// their answers. listening is called once the address is open.
func serve(ctx context.Context, cfg config, stderr io.Writer, listening func(net.Addr) error) error {
	lines := newLineWriter(stderr)
	defer lines.flush(time.Second)
	log := slog.New(slog.NewJSONHandler(lines, &slog.HandlerOptions{Level: cfg.logLevel}))
	redis.SetLogger(&quietLogger{log: log})
	listener, err := net.Listen("tcp", cfg.addr)
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	defer listener.Close()
	if err := listening(listener.Addr()); err != nil {
		return err
	}
	s := newServer(cfg, log)
	srv := newHTTPServer(s.routes(), cfg.storeTimeout, log)
	if cfg.metricsAddr != "" {
		metricsListener, err := net.Listen("tcp", cfg.metricsAddr)
		if err != nil {
			return fmt.Errorf("listening for metrics: %w", err)
		}
		metrics := newHTTPServer(s.metrics(), cfg.storeTimeout, log)
		go func() { _ = metrics.Serve(metricsListener) }()
		defer metrics.Close()
		log.Info("serving metrics", "addr", metricsListener.Addr().String())
	}

	// The background outlives the requests, which outlive the signal.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	running.Go(func() { s.verifier.keys.run(background) })
	running.Go(func() { s.store.watch(background) })
	defer func() {
		stop()
		_ = s.store.close() // a check that waits for Redis ends
		running.Wait()
	}()

	log.Info("listening", "addr", listener.Addr().String(), "version", versionText())
	warn(cfg, log)
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(callers{listener}) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serving: %w", err)
	case <-ctx.Done():
	}
	log.Info("shutting down", "drain_delay", cfg.drainDelay.String(), "grace", cfg.shutdownGrace.String())
	s.draining.Store(true)
	select {
	case err := <-failed:
		return fmt.Errorf("serving: %w", err)
	case <-time.After(cfg.drainDelay):
	}
	grace, cancel := context.WithTimeout(context.Background(), cfg.shutdownGrace)
	defer cancel()
	if err := srv.Shutdown(grace); err != nil {
		_ = srv.Close()
		return fmt.Errorf("requests were cut off after SHUTDOWN_GRACE: %w", err)
	}
	log.Info("stopped")
	return nil
}

func newServer(cfg config, log *slog.Logger) *server {
	return &server{
		verifier: &verifier{
			keys:         newKeySet(cfg.jwksURL, cfg.algorithms, log),
			algorithms:   cfg.algorithms,
			issuer:       cfg.issuer,
			audience:     cfg.audience,
			clientClaims: cfg.clientClaims,
			maxLifetime:  cfg.maxLifetime,
			now:          time.Now,
		},
		requests:    newRequestMetrics(),
		store:       openStore(cfg.redis, cfg.keyPrefix, cfg.storeTimeout, log),
		log:         log,
		now:         time.Now,
		authURL:     cfg.authURL,
		keyPrefix:   cfg.keyPrefix,
		sessionTTL:  cfg.sessionTTL,
		maxInFlight: cfg.maxInFlight,
	}
}

// warn logs what works but may not be meant.
func warn(cfg config, log *slog.Logger) {
	if cfg.issuer == "" {
		log.Warn("JWT_ISSUER is not set: tokens of any issuer pass whose key is in the set")
	}
	if cfg.audience == "" {
		log.Warn("JWT_AUDIENCE is not set: tokens meant for other services pass")
	}
	if o := cfg.redis.standalone; o != nil && o.TLSConfig != nil && o.TLSConfig.InsecureSkipVerify {
		log.Warn("REDIS_URL has skip_verify: whoever answers there passes for Redis")
	}
}

// healthcheck asks the service that runs with the same environment whether it is ready.
func healthcheck(ctx context.Context, getenv func(string) string) error {
	cfg, _ := loadConfig(getenv) // only ADDR is needed, and its own check is the dial
	host, port, err := net.SplitHostPort(cfg.addr)
	if err != nil {
		return fmt.Errorf("reading ADDR: %w", err)
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "localhost"
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.storeTimeout+2*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/readyz", nil)
	if err != nil {
		return err
	}
	response, err := (&http.Client{Transport: &http.Transport{}}).Do(r) // no proxy
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		answer, _ := io.ReadAll(io.LimitReader(response.Body, 4<<10))
		return fmt.Errorf("status %d: %s", response.StatusCode, answer)
	}
	return nil
}

// versionText is the module's version and, where the build knew it, the revision.
func versionText() string {
	version, revision, goVersion := build()
	return strings.Join(slices.DeleteFunc([]string{"authsession", version, revision, goVersion}, func(s string) bool { return s == "" }), " ")
}

// build is what this program was built from and with; "" is not known.
func build() (version, revision, goVersion string) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "", "", ""
	}
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" {
			revision = setting.Value
		}
	}
	return info.Main.Version, revision, info.GoVersion
}
