package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"authsession/internal/redistest"
	"authsession/internal/testkit"

	"github.com/redis/go-redis/v9"
)

// leastACL is the command behind a line "# role" of docs/operate.md.
func leastACL(t *testing.T, role, password string) []any {
	t.Helper()
	text, err := os.ReadFile("docs/operate.md")
	testkit.Must(t, err)
	_, after, found := strings.Cut(string(text), "\n# "+role+"\n")
	line, _, _ := strings.Cut(after, "\n")
	var args []any
	for word := range strings.FieldsSeq(strings.Replace(line, ">password", ">"+password, 1)) {
		args = append(args, word)
	}
	if !found || !strings.HasPrefix(line, "ACL SETUSER authsession ") {
		t.Fatalf("docs/operate.md has no ACL for %s", role)
	}
	return args
}

// The ACLs in docs/operate.md are enough: for the warning about eviction, while a slot moves, and through a failover.
func TestStoreLeastACL(t *testing.T) {
	redistest.Need(t)
	const prefix, password, sentinels = "auth_session:", "s3cret-pw", "s3cret-sentinels"
	file := filepath.Join(t.TempDir(), "password")
	testkit.Must(t, os.WriteFile(file, []byte(password), 0o600))
	allow := func(t *testing.T, p *redistest.Server, acl []any) {
		t.Helper()
		testkit.Must(t, p.Client(t).Do(t.Context(), acl...).Err())
	}
	wantWell := func(t *testing.T, s *store) {
		t.Helper()
		if err := s.check(); err != nil || s.primariesFailing() != nil {
			t.Errorf("check = %v, failing %v", err, s.primariesFailing())
		}
		for i := range 20 {
			if err := s.put("acme", fmt.Sprint(i), []byte("x"), inAnHour()); err != nil {
				t.Errorf("put = %v", err)
			}
		}
	}
	t.Run("standalone", func(t *testing.T) {
		t.Parallel()
		p := redistest.Start(t, "--maxmemory-policy", "volatile-lru")
		allow(t, p, leastACL(t, "standalone, and data nodes behind sentinels", password))
		s := openTestStore(t, "standalone", "redis://authsession@"+p.Addr, prefix, time.Second, "REDIS_PASSWORD_FILE", file)
		wantWell(t, s)
		if s.evicts != "volatile-lru" {
			t.Errorf("the policy seen is %q, want volatile-lru", s.evicts)
		}
	})
	t.Run("cluster", func(t *testing.T) {
		t.Parallel()
		nodes := redistest.Cluster(t)
		for _, p := range nodes {
			allow(t, p, leastACL(t, "every node of a cluster", password))
		}
		s := openTestStore(t, "cluster", "redis://authsession@"+nodes[0].Addr, prefix, time.Second,
			"REDIS_PASSWORD_FILE", file)
		wantWell(t, s)
		from, to := nodes[0].Client(t), nodes[1].Client(t)
		slot := from.ClusterKeySlot(t.Context(), "{b}").Val() // one of the first node's
		fromID, toID := from.ClusterMyID(t.Context()).Val(), to.ClusterMyID(t.Context()).Val()
		testkit.Must(t, to.Do(t.Context(), "CLUSTER", "SETSLOT", slot, "IMPORTING", fromID).Err())
		testkit.Must(t, from.Do(t.Context(), "CLUSTER", "SETSLOT", slot, "MIGRATING", toID).Err())
		if err := s.put("acme", "{b}", []byte("x"), inAnHour()); err != nil {
			t.Errorf("put = %v while its slot moves", err)
		}
	})
	t.Run("sentinel", func(t *testing.T) {
		t.Parallel()
		primary, replica, sentinel := redistest.Sentinel(t)
		for _, p := range []*redistest.Server{primary, replica} {
			allow(t, p, leastACL(t, "standalone, and data nodes behind sentinels", password))
		}
		c := redis.NewClient(&redis.Options{Addr: sentinel.Addr}) // not a user of the password to come
		defer c.Close()
		testkit.Must(t, c.Do(context.Background(), leastACL(t, "every sentinel", sentinels)...).Err())
		testkit.Must(t, c.Do(context.Background(), "ACL", "SETUSER", "default", "resetpass", ">another").Err())
		url := "redis://authsession:" + sentinels + "@" + sentinel.Addr + "?master_name=mymaster&username=authsession"
		s := openTestStore(t, "sentinel", url, prefix, time.Second, "REDIS_PASSWORD_FILE", file)
		wantWell(t, s)
		primary.Stop()
		testkit.WaitFor(t, 15*time.Second, "the failover", func() bool { return s.check() == nil })
		wantWell(t, s)
	})
}
