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

// loadReport is the result of many calls.
type loadReport struct {
	Calls        int            `json:"calls"`
	Succeeded    int            `json:"succeeded"`
	HResults     map[string]int `json:"hresults"`             // count by code; "none" for errors without a code
	Errors       map[string]int `json:"errors,omitempty"`     // count by text
	Fingerprints map[string]int `json:"passwordFingerprints"` // count by password
	ElapsedMs    float64        `json:"elapsedMs"`            // from the start of the first call to the end of the last
	P50Ms        float64        `json:"p50Ms"`                // of one call, with its activation if it has one
	P90Ms        float64        `json:"p90Ms"`
	P99Ms        float64        `json:"p99Ms"`
	MaxMs        float64        `json:"maxMs"`
}

// load makes the calls from parallel workers. If every is not 0, it is the time between two calls. If while is not "",
// load stops when that file is deleted. Without activations, each worker activates once, as part of its first call.
func load(clsid windows.GUID, input string, calls, parallel int, every time.Duration, while string,
	activations bool) loadReport {
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

	// Wine 8 initializes its proxy tables at a process's first activation without a lock: a second thread that
	// activates at the same time jumps to address 0.
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
				// After an error, the surrogate can be gone. ccg.exe then activates a new object.
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
	report.P50Ms, report.P90Ms = percentile(50), percentile(90)
	report.P99Ms, report.MaxMs = percentile(99), percentile(100)
	return report
}
