package main

import (
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/com"
	"golang.org/x/sys/windows"
)

// loadReport is what many calls came to.
type loadReport struct {
	Calls        int            `json:"calls"`
	Succeeded    int            `json:"succeeded"`
	HResults     map[string]int `json:"hresults"`             // count by code; "none" for errors without one
	Errors       map[string]int `json:"errors,omitempty"`     // count by text
	Fingerprints map[string]int `json:"passwordFingerprints"` // count by password
	ElapsedMs    float64        `json:"elapsedMs"`            // from the first call's begin to the last one's end
	P50Ms        float64        `json:"p50Ms"`                // of one call, with its activation where it has one
	P90Ms        float64        `json:"p90Ms"`
	P99Ms        float64        `json:"p99Ms"`
	MaxMs        float64        `json:"maxMs"`
}

// load makes the calls from as many workers as parallel says, one call every so often if every is not 0, for as long
// as the file while is there if it is not "". Without activations
// each worker activates once, and that is part of its first call.
func load(clsid windows.GUID, input string, calls, parallel int, every time.Duration, while string, activations bool) loadReport {
	var (
		mutex     sync.Mutex
		workers   sync.WaitGroup
		next      atomic.Int64
		latencies []time.Duration
		report    = loadReport{HResults: map[string]int{}, Errors: map[string]int{}, Fingerprints: map[string]int{}}
	)
	record := func(r com.Result, err error, took time.Duration) {
		mutex.Lock()
		defer mutex.Unlock()
		report.Calls++
		latencies = append(latencies, took)
		if err != nil {
			code, ok := hresult(err)
			if !ok {
				code = "none"
			}
			report.HResults[code]++
			report.Errors[err.Error()]++
			return
		}
		report.Succeeded++
		report.HResults["0x00000000"]++
		report.Fingerprints[fingerprint(r.Password.Reveal())]++
		r.Password.Wipe()
	}

	pace := func() {}
	if every > 0 {
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		pace = func() { <-ticker.C }
	}

	// Wine 8 fills in the tables of its proxies at a process's first activation, and a second thread that activates meanwhile
	// jumps to the address 0.
	if object, err := com.Activate(clsid); err == nil {
		object.Release()
	}
	begin := time.Now()
	for range parallel {
		workers.Go(func() {
			var object *com.Object
			for next.Add(1) <= int64(calls) {
				pace()
				if _, err := os.Stat(while); while != "" && err != nil {
					break
				}
				callBegin := time.Now()
				var result com.Result
				var err error
				if object == nil {
					object, err = com.Activate(clsid)
				}
				if err == nil {
					result, err = object.GetPasswordCredentials(input)
				}
				record(result, err, time.Since(callBegin))
				// After an error too: the surrogate may be gone, and ccg.exe asks for a new object then.
				if object != nil && (activations || err != nil) {
					object.Release()
					object = nil
				}
			}
			if object != nil {
				object.Release()
			}
		})
	}
	workers.Wait()
	report.ElapsedMs = milliseconds(time.Since(begin))

	if len(latencies) == 0 {
		return report
	}
	slices.Sort(latencies)
	percentile := func(p int) float64 { return milliseconds(latencies[(len(latencies)-1)*p/100]) }
	report.P50Ms, report.P90Ms, report.P99Ms, report.MaxMs = percentile(50), percentile(90), percentile(99), percentile(100)
	return report
}
