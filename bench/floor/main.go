// Floor is the least that a session service could do, to measure the real one against:
// decode the body, one SET, encode an answer. It checks nothing. Its arguments are where it listens and where Redis is,
// and "cluster" where that is a node of one.
package main

import (
	"encoding/json"
	"log"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

type record struct {
	EndUserID     string `json:"end_user_id"`
	InstitutionID string `json:"institution_id"`
	RedirectURI   string `json:"redirect_uri"`
	CancelURI     string `json:"cancel_uri"`
}

func main() {
	client := redis.NewUniversalClient(&redis.UniversalOptions{
		Addrs: []string{os.Args[2]}, IsClusterMode: len(os.Args) > 3,
	})
	var count atomic.Int64
	http.HandleFunc("POST /auth/session", func(w http.ResponseWriter, r *http.Request) {
		var body record
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		value, _ := json.Marshal(body)
		id := "floor:" + strconv.FormatInt(count.Add(1), 10)
		if err := client.Set(r.Context(), id, value, 30*time.Minute).Err(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]string{"session_id": id})
	})
	log.Fatal(http.ListenAndServe(os.Args[1], nil))
}
