-- The login of Grafana: it may read the views of adjourn_v1 and nothing else.
\getenv password PGPASSWORD
SELECT 'CREATE ROLE grafana LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'grafana') \gexec
ALTER ROLE grafana PASSWORD :'password';
GRANT adjourn_reader TO grafana;
