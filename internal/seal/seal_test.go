package seal

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"

	"authsession/internal/testkit"
)

// vectors are values of either kind and what is in them. They were made by another implementation.
func vectors(t testing.TB) (vectors map[string]struct {
	Secret string `json:"sess_id"`
	Value  []byte `json:"value_base64"`
	Record string `json:"record"`
}) {
	t.Helper()
	data, err := os.ReadFile("testdata/records.json")
	testkit.Must(t, err)
	testkit.Must(t, json.Unmarshal(data, &vectors))
	return vectors
}

func TestOpen(t *testing.T) {
	for _, kind := range []string{"plain", "sealed"} {
		v := vectors(t)[kind]
		if got, err := Open(v.Secret, v.Value); err != nil || string(got) != v.Record {
			t.Errorf("Open of the %s vector = %s, %v, want %s", kind, got, err, v.Record)
		}
	}
}

func TestSeal(t *testing.T) {
	const secret, record = "a-secret", `{"v":1}`
	first, second := Seal(secret, []byte(record)), Seal(secret, []byte(record))
	if bytes.Equal(first[1:13], second[1:13]) || bytes.Equal(first[13:], second[13:]) {
		t.Error("two seals have one nonce")
	}
	if len(first) != 1+12+len(record)+16 || first[0] != 1 || bytes.Contains(first, []byte(record)) {
		t.Errorf("Seal = %q, want 0x01, a nonce, as much as the record, and a tag", first)
	}
	for _, value := range [][]byte{first, second} {
		if got, err := Open(secret, value); err != nil || string(got) != record {
			t.Errorf("Open = %q, %v, want %s", got, err, record)
		}
	}
}

// Nothing but the very value opens, and to nobody else.
func TestOpenFails(t *testing.T) {
	value := Seal("a-secret", []byte(`{"v":1}`))
	if got, err := Open("another", value); err == nil {
		t.Errorf("Open by another secret = %q", got)
	}
	for i := range value {
		changed := bytes.Clone(value)
		changed[i] ^= 0x80
		if got, err := Open("a-secret", changed); err == nil {
			t.Errorf("Open with byte %d changed = %q", i, got)
		}
	}
	for n := range len(value) {
		if got, err := Open("a-secret", value[:n]); err == nil {
			t.Errorf("Open of the first %d bytes = %q", n, got)
		}
	}
}

func BenchmarkSeal(b *testing.B) {
	v := vectors(b)["plain"]
	b.ReportAllocs()
	for b.Loop() {
		Seal(v.Secret, v.Value)
	}
}
