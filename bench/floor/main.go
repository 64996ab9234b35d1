// Floor is the minimum of a session service: it decodes the body, does one SET and encodes a response, without a check.
// Its arguments are the address to listen on and Redis's address.
package main

import (
	"crypto/rand"
	"encoding/json"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/redis/go-redis/v9"
)

func main() {
	client := redis.NewClient(&redis.Options{Addr: os.Args[2]})
	http.HandleFunc("POST /auth/session", func(w http.ResponseWriter, r *http.Request) {
		var record struct {
			EndUserID     string `json:"end_user_id"`
			InstitutionID string `json:"institution_id"`
			RedirectURI   string `json:"redirect_uri"`
			CancelURI     string `json:"cancel_uri"`
		}
		if err := json.NewDecoder(r.Body).Decode(&record); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		value, _ := json.Marshal(record)
		id := rand.Text()
		if err := client.Set(r.Context(), id, value, 30*time.Minute).Err(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]string{"session_id": id})
	})
	log.Fatal(http.ListenAndServe(os.Args[1], nil))
}
