CREATE TABLE counters (
	"key" VARCHAR(64) NOT NULL, 
	count BIGINT NOT NULL, 
	PRIMARY KEY ("key")
);
CREATE TABLE devices (
	id INTEGER NOT NULL, 
	name VARCHAR(64) NOT NULL, 
	profile VARCHAR(64), 
	tags TEXT NOT NULL, 
	enrolled_at FLOAT NOT NULL, 
	token_sha256 VARCHAR(64) NOT NULL, 
	broker_hash TEXT NOT NULL, 
	online BOOLEAN NOT NULL, 
	boot_id VARCHAR(64), 
	last_seen FLOAT, 
	info TEXT, 
	reported TEXT, 
	malformed BIGINT NOT NULL, 
	malformed_why TEXT, 
	rev BIGINT NOT NULL, 
	n BIGINT NOT NULL, 
	certificate_serial TEXT, 
	certificate_expires FLOAT, 
	revoked_at FLOAT, 
	PRIMARY KEY (id), 
	UNIQUE (name), 
	UNIQUE (token_sha256)
);
CREATE TABLE facts (
	"key" VARCHAR(64) NOT NULL, 
	value TEXT NOT NULL, 
	PRIMARY KEY ("key")
);
CREATE TABLE jobs (
	id INTEGER NOT NULL, 
	job_id VARCHAR(64) NOT NULL, 
	created FLOAT NOT NULL, 
	expires FLOAT NOT NULL, 
	target TEXT NOT NULL, 
	selector TEXT NOT NULL, 
	policy TEXT, 
	interval_s FLOAT, 
	config TEXT, 
	PRIMARY KEY (id), 
	UNIQUE (job_id)
);
CREATE TABLE boots (
	id INTEGER NOT NULL, 
	device INTEGER NOT NULL, 
	boot_id VARCHAR(64) NOT NULL, 
	floor BIGINT NOT NULL, 
	upto BIGINT NOT NULL, 
	last BIGINT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (device, boot_id), 
	FOREIGN KEY(device) REFERENCES devices (id)
);
CREATE TABLE certificates (
	serial VARCHAR(64) NOT NULL, 
	device INTEGER NOT NULL, 
	expires FLOAT NOT NULL, 
	revoked_at FLOAT, 
	PRIMARY KEY (serial), 
	FOREIGN KEY(device) REFERENCES devices (id)
);
CREATE INDEX certificates_by_device ON certificates (device);
CREATE TABLE commands (
	job INTEGER NOT NULL, 
	device INTEGER NOT NULL, 
	action VARCHAR(16) NOT NULL, 
	n BIGINT NOT NULL, 
	pending BOOLEAN NOT NULL, 
	PRIMARY KEY (job, device), 
	FOREIGN KEY(job) REFERENCES jobs (id), 
	FOREIGN KEY(device) REFERENCES devices (id)
);
CREATE INDEX commands_pending ON commands (pending);
CREATE TABLE desired (
	device INTEGER NOT NULL, 
	rev BIGINT NOT NULL, 
	n BIGINT NOT NULL, 
	job_id VARCHAR(64) NOT NULL, 
	target TEXT, 
	policy TEXT, 
	interval_s FLOAT, 
	config TEXT, 
	expires FLOAT NOT NULL, 
	pending BOOLEAN NOT NULL, 
	PRIMARY KEY (device), 
	FOREIGN KEY(device) REFERENCES devices (id)
);
CREATE INDEX desired_pending ON desired (pending);
CREATE TABLE job_devices (
	job INTEGER NOT NULL, 
	device INTEGER NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	reason TEXT, 
	detail TEXT, 
	updated FLOAT NOT NULL, 
	PRIMARY KEY (job, device), 
	FOREIGN KEY(job) REFERENCES jobs (id), 
	FOREIGN KEY(device) REFERENCES devices (id)
);
CREATE INDEX job_devices_by_device ON job_devices (device, job);
CREATE TABLE job_reports (
	job INTEGER NOT NULL, 
	device INTEGER NOT NULL, 
	reports TEXT NOT NULL, 
	PRIMARY KEY (job, device), 
	FOREIGN KEY(job) REFERENCES jobs (id), 
	FOREIGN KEY(device) REFERENCES devices (id)
);
CREATE TABLE events (
	boot INTEGER NOT NULL, 
	seq BIGINT NOT NULL, 
	device INTEGER NOT NULL, 
	at FLOAT NOT NULL, 
	received FLOAT NOT NULL, 
	kind VARCHAR(64) NOT NULL, 
	detail TEXT NOT NULL, 
	PRIMARY KEY (boot, seq), 
	FOREIGN KEY(boot) REFERENCES boots (id), 
	FOREIGN KEY(device) REFERENCES devices (id)
);
CREATE INDEX events_by_time ON events (device, at);
CREATE TABLE job_events (
	boot INTEGER NOT NULL, 
	seq BIGINT NOT NULL, 
	device INTEGER NOT NULL, 
	at FLOAT NOT NULL, 
	received FLOAT NOT NULL, 
	job_id VARCHAR(64) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	target TEXT, 
	reason TEXT, 
	detail TEXT, 
	PRIMARY KEY (boot, seq), 
	FOREIGN KEY(boot) REFERENCES boots (id), 
	FOREIGN KEY(device) REFERENCES devices (id)
);
CREATE INDEX job_events_by_job ON job_events (job_id, device);
CREATE INDEX job_events_by_time ON job_events (device, at);
CREATE TABLE records (
	boot INTEGER NOT NULL, 
	seq BIGINT NOT NULL, 
	device INTEGER NOT NULL, 
	at FLOAT NOT NULL, 
	received FLOAT NOT NULL, 
	uptime_s FLOAT NOT NULL, 
	clock_synced BOOLEAN NOT NULL, 
	interval_s FLOAT NOT NULL, 
	bundle TEXT, 
	policy TEXT, 
	requests BIGINT NOT NULL, 
	errors BIGINT NOT NULL, 
	deadline_missed BIGINT NOT NULL, 
	labelled BIGINT NOT NULL, 
	correct BIGINT NOT NULL, 
	exits TEXT NOT NULL, 
	latency BLOB NOT NULL, 
	latency_sum_ms FLOAT NOT NULL, 
	energy_mj FLOAT, 
	energy_provenance VARCHAR(16), 
	energy_on TEXT, 
	energy_why TEXT, 
	busy_s FLOAT NOT NULL, 
	temperature_c FLOAT, 
	throttled BOOLEAN, 
	under_voltage BOOLEAN, 
	memory_mb FLOAT, 
	PRIMARY KEY (boot, seq), 
	FOREIGN KEY(boot) REFERENCES boots (id), 
	FOREIGN KEY(device) REFERENCES devices (id)
);
CREATE INDEX records_by_time ON records (device, at);
